// An HTTP server whose answer to /slow comes in parts.
"use strict";

const http = require("http");
const { setTimeout: sleep } = require("timers/promises");

const [host, port] = process.env.LISTEN.split(":");

const server = http.createServer(async (request, response) => {
  if (request.url === "/slow") {
    for (let i = 0; i < 4; i++) {
      response.write("part ");
      await sleep(300);
    }
  } else {
    response.setHeader("Content-Length", 6);
  }
  response.end("hello\n");
});
server.listen(port, host);
