// HTTP clients that keep what they no longer use, and some that only look like it.
package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"
)

const (
	round  = 450 * time.Millisecond
	rounds = 10
)

// A client with connections of its own, which it keeps for 90 s unless it is told otherwise.
func client() (*http.Client, *http.Transport) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	return &http.Client{Transport: transport}, transport
}

func open(with *http.Client, path string) io.ReadCloser {
	response, err := with.Get("http://" + os.Getenv("SERVER") + path)
	if err != nil {
		panic(err)
	}
	return response.Body
}

func get(with *http.Client, path string) {
	body := open(with, path)
	io.Copy(io.Discard, body)
	body.Close()
}

// A client for each request, or one for all.
func requests(each bool, idle time.Duration) {
	var one *http.Client
	for i := 0; i < 4*rounds; i++ {
		if each || one == nil {
			with, transport := client()
			if idle != 0 {
				transport.IdleConnTimeout = idle
			}
			one = with
		}
		get(one, "/")
		if i%4 == 3 {
			time.Sleep(round)
		}
	}
}

// A pool that grows with each burst and shrinks after its idle timeout.
func shrink() {
	with, transport := client()
	transport.IdleConnTimeout = 600 * time.Millisecond
	for i := 0; i < 3; i++ {
		var burst sync.WaitGroup
		for j := 0; j < 20; j++ {
			burst.Add(1)
			go func() {
				defer burst.Done()
				get(with, "/late")
			}()
		}
		burst.Wait()
		for j := 0; j < 3; j++ {
			get(with, "/")
			time.Sleep(round)
		}
	}
}

// A load generator: more and more connections, all of them in use.
func load() {
	end := time.Now().Add(rounds * round)
	var all sync.WaitGroup
	for time.Now().Before(end) {
		all.Add(1)
		go func() {
			defer all.Done()
			with, _ := client()
			for time.Now().Before(end) {
				get(with, "/")
				time.Sleep(100 * time.Millisecond)
			}
		}()
		time.Sleep(100 * time.Millisecond)
	}
	all.Wait()
}

// More and more watches, each of which hears of something now and then.
func watches() {
	with, _ := client()
	for i := 0; i < rounds; i++ {
		for j := 0; j < 4; j++ {
			events := bufio.NewReader(open(with, "/events"))
			go func() {
				for {
					if _, err := events.ReadString('\n'); err != nil {
						return
					}
				}
			}()
		}
		get(with, "/")
		time.Sleep(round)
	}
}

// A UDP socket for each query, or one for all. They are not connected.
func queries(each bool) {
	server, err := net.ResolveUDPAddr("udp", os.Getenv("UDP_SERVER"))
	if err != nil {
		panic(err)
	}
	var kept []net.PacketConn
	for i := 0; i < 4*rounds; i++ {
		if each || i == 0 {
			socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
			if err != nil {
				panic(err)
			}
			kept = append(kept, socket)
		}
		socket := kept[len(kept)-1]
		socket.WriteTo([]byte("query"), server)
		if _, _, err := socket.ReadFrom(make([]byte, 16)); err != nil {
			panic(err)
		}
		if i%4 == 3 {
			time.Sleep(round)
		}
	}
	runtime.KeepAlive(kept)
}

// Sends more than any queue holds; the server reads slowly, or never.
func upload(path string) {
	connection, err := net.Dial("tcp", os.Getenv("SERVER"))
	if err != nil {
		panic(err)
	}
	io.WriteString(connection, "POST "+path+" HTTP/1.1\r\n\r\n")
	connection.SetWriteDeadline(time.Now().Add(3 * time.Second))
	connection.Write(make([]byte, 32<<20))
	connection.Close()
}

func main() {
	switch os.Args[1] {
	case "leaking":
		requests(true, 0)
	case "right":
		requests(false, 0)
	case "idle_timeout":
		requests(true, 600*time.Millisecond)
	case "shrink":
		shrink()
	case "load":
		load()
	case "watches":
		watches()
	case "udp_leaking":
		queries(true)
	case "udp_right":
		queries(false)
	case "upload_stuck":
		upload("/never")
	case "upload_slow":
		upload("/slowly")
	default:
		panic(os.Args[1])
	}
}
