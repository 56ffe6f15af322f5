// An HTTP server whose answer to /slow comes in parts.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	http.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
		if request.URL.Path == "/slow" {
			for i := 0; i < 4; i++ {
				fmt.Fprint(answer, "part ")
				answer.(http.Flusher).Flush()
				time.Sleep(300 * time.Millisecond)
			}
		}
		io.WriteString(answer, "hello\n")
	})
	panic(http.ListenAndServe(os.Getenv("LISTEN"), nil))
}
