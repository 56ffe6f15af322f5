// HTTP clients that keep what they no longer use, and some that only look like it.
"use strict";

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

const programs = {
  leaking: () => requests(true),
  right: () => requests(false),
  subscriptions,
  housekeeper,
};
programs[process.argv[2]]().then(() => process.exit());
