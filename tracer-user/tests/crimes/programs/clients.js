// HTTP clients that keep what they no longer use, and some that only look like it.
"use strict";

const dgram = require("dgram");
const http = require("http");
const net = require("net");
const { setTimeout: sleep } = require("timers/promises");

const [host, port] = process.env.SERVER.split(":");
const ROUND = 450;
const ROUNDS = 10;

const newAgent = () => new http.Agent({ keepAlive: true });

function get(agent, path = "/") {
  return new Promise((resolve, reject) => {
    const request = http.get({ agent, host, port, path }, (response) => {
      response.resume();
      response.on("end", resolve);
    });
    request.on("error", reject);
  });
}

// An agent for each request, or one for all.
async function requests(isLeaking) {
  const agents = [];
  for (let i = 0; i < 4 * ROUNDS; i++) {
    if (isLeaking || agents.length === 0) agents.push(newAgent());
    await get(agents.at(-1));
    if (i % 4 === 3) await sleep(ROUND);
  }
}

// Quiet subscriptions to server-sent events, beside an agent that is in use.
async function subscriptions() {
  const quiet = [];
  for (let i = 0; i < 12; i++) {
    const request = http.get({ agent: newAgent(), host, port, path: "/quiet" });
    quiet.push(new Promise((resolve) => request.on("response", resolve)));
  }
  await Promise.all(quiet);
  await sleep(ROUND);
  const agent = newAgent();
  for (let i = 0; i < ROUNDS; i++) {
    await get(agent);
    await sleep(ROUND);
  }
}

async function connection() {
  const socket = net.connect(port, host);
  socket.write("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  await new Promise((resolve) => socket.once("data", resolve));
  return socket;
}

// A quiet pool of which one is replaced now and then.
async function housekeeper() {
  const pool = [];
  for (let i = 0; i < 12; i++) pool.push(await connection());
  await sleep(ROUND);
  for (let i = 0; i < 2 * ROUNDS; i++) {
    const fresh = await connection();
    pool.shift().destroy();
    pool.push(fresh);
    await sleep(ROUND);
  }
}

// A UDP socket for each query, or one for all.
async function queries(isLeaking) {
  const [udpHost, udpPort] = process.env.UDP_SERVER.split(":");
  const sockets = [];
  for (let i = 0; i < 4 * ROUNDS; i++) {
    if (isLeaking || sockets.length === 0) {
      const socket = dgram.createSocket("udp4");
      await new Promise((resolve) => socket.connect(+udpPort, udpHost, resolve));
      sockets.push(socket);
    }
    const socket = sockets.at(-1);
    const answer = new Promise((resolve) => socket.once("message", resolve));
    socket.send("query");
    await answer;
    if (i % 4 === 3) await sleep(ROUND);
  }
}

// Sends more than any queue holds; the server reads slowly, or never.
async function upload(path) {
  const socket = net.connect(port, host);
  socket.write(`POST ${path} HTTP/1.1\r\n\r\n`);
  const sent = new Promise((resolve) => socket.write(Buffer.alloc(32 << 20), resolve));
  await Promise.race([sent, sleep(3000)]);
  socket.destroy();
}

const programs = {
  leaking: () => requests(true),
  right: () => requests(false),
  subscriptions,
  housekeeper,
  udp_leaking: () => queries(true),
  udp_right: () => queries(false),
  upload_stuck: () => upload("/never"),
  upload_slow: () => upload("/slowly"),
};
programs[process.argv[2]]().then(() => process.exit());
