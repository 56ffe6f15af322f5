"""HTTP servers whose answer to /slow comes in parts: one with threads, one with asyncio. The
latter closes no connection if it is told to leak."""

import asyncio
import http.server
import os
import sys
import time

HEAD = b"HTTP/1.1 200 OK\r\n"
HELLO = HEAD + b"Content-Length: 6\r\n\r\nhello\n"
SLOW = HEAD + b"Content-Length: 26\r\n\r\n"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path != "/slow":
            self.wfile.write(HELLO)
            return
        self.wfile.write(SLOW)
        for _ in range(4):
            self.wfile.write(b"part ")
            time.sleep(0.3)
        self.wfile.write(b"hello\n")


kept = []


async def answer(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"GET /slow "):
                writer.write(HELLO)
                continue
            writer.write(SLOW)
            for _ in range(4):
                writer.write(b"part ")
                await writer.drain()
                await asyncio.sleep(0.3)
            writer.write(b"hello\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        if sys.argv[1] == "leaking":
            kept.append(writer)
        else:
            writer.close()


async def serve(host, port):
    server = await asyncio.start_server(answer, host, port)
    await server.serve_forever()


host, port = os.environ["LISTEN"].split(":")
if sys.argv[1] == "threads":
    http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
else:
    asyncio.run(serve(host, int(port)))
