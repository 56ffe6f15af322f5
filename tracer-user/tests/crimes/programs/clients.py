"""HTTP clients that keep what they no longer use, and some that only look like it."""

import http.client
import os
import queue
import socket
import sys
import threading
import time

ROUND = 0.45
ROUNDS = 10


def connect():
    return http.client.HTTPConnection(os.environ["SERVER"])


def get(connection, path="/"):
    connection.request("GET", path)
    connection.getresponse().read()


def together(functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def requests(is_leaking):
    """A connection for each request, or one for all."""
    kept = []
    for _ in range(ROUNDS):
        for _ in range(4):
            if is_leaking or not kept:
                kept.append(connect())
            get(kept[-1])
        time.sleep(ROUND)


def burst():
    """Three bursts, each of which is released after a while."""
    for _ in range(3):
        connections = [connect() for _ in range(20)]
        together([lambda it=it: get(it, "/late") for it in connections])
        time.sleep(ROUND)
        last = connect()
        get(last)
        time.sleep(ROUND)
        for connection in [*connections, last]:
            connection.close()


def tenants():
    """A connection for each tenant, all of which are used in every round."""
    tenants = {}
    for turn in range(ROUNDS):
        for tenant in range(3 * (turn + 1)):
            get(tenants.setdefault(tenant, connect()))
        time.sleep(ROUND)


def tenants_arriving():
    """A connection for each tenant; the program comes back to each, though ever later."""
    tenants = []

    def arrive():
        tenants.append(connect())
        get(tenants[-1])

    for _ in range(16):
        arrive()
    turn = 0
    for step in range(240):
        get(tenants[turn])
        turn = (turn + 1) % len(tenants)
        if step % 4 == 3:
            arrive()
        time.sleep(0.03)
    return tenants


def database():
    """A pool of fixed size that gives out first what came back last."""
    pool = queue.LifoQueue()
    for _ in range(13):
        connection = connect()
        get(connection)
        pool.put(connection)
        time.sleep(0.2)
    for _ in range(2 * ROUNDS):
        connection = pool.get()
        get(connection)
        pool.put(connection)
        time.sleep(ROUND / 2)
    return pool


def long_polls():
    """Each waits for an answer, and asks again on the same connection."""

    def poll(delay):
        time.sleep(delay)
        connection = connect()
        for _ in range(5):
            get(connection, "/late")

    together([lambda it=it: poll(it * 0.1) for it in range(24)])


def queries(is_leaking):
    """A UDP socket for each query, or one for all."""
    host, port = os.environ["UDP_SERVER"].split(":")
    sockets = []
    for _ in range(ROUNDS):
        for _ in range(4):
            if is_leaking or not sockets:
                sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sockets[-1].connect((host, int(port)))
            sockets[-1].send(b"query")
            sockets[-1].recv(16)
        time.sleep(ROUND)
    return sockets


def upload(path):
    """Sends more than any queue holds; the server reads slowly, or never."""
    host, port = os.environ["SERVER"].split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(3)
        connection.sendall(b"POST %s HTTP/1.1\r\n\r\n" % path)
        try:
            connection.sendall(bytes(32 << 20))
        except TimeoutError:
            pass


kept = {
    "leaking": lambda: requests(is_leaking=True),
    "right": lambda: requests(is_leaking=False),
    "burst": burst,
    "tenants": tenants,
    "tenants_arriving": tenants_arriving,
    "database": database,
    "long_polls": long_polls,
    "udp_leaking": lambda: queries(is_leaking=True),
    "udp_right": lambda: queries(is_leaking=False),
    "upload_stuck": lambda: upload(b"/never"),
    "upload_slow": lambda: upload(b"/slowly"),
}[sys.argv[1]]()
# Leaves the sockets to the exit of the process: a note tells of piles that stand at the end.
os._exit(0)
