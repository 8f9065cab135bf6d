"""A bad network: a relay of datagrams between workers and their router that delays, loses, doubles, reorders and cuts, each
way by its own rules, changed while it runs. QUIC sees a path; nothing is forged. Started by `fleet`."""

import dataclasses
import heapq
import random
import selectors
import socket
import threading
import time

DATAGRAM = 65536
# Datagrams that wait in a relay at most; more are lost, as at a router whose queue is full.
QUEUE = 10_000


@dataclasses.dataclass
class Way:
    """What befalls datagrams of one direction."""

    loss: float = 0.0
    twice: float = 0.0
    delay: float = 0.0
    # Each datagram is delayed by up to this much more or less: what is behind overtakes what is before.
    jitter: float = 0.0
    # Bytes a second; 0 is without limit. What does not fit into `backlog` seconds is lost.
    rate: float = 0.0
    backlog: float = 0.5
    cut: bool = False
    seen: int = 0
    lost: int = 0
    free_at: float = 0.0

    def due(self, now, size, dice):
        """When this datagram and its copies go on."""
        self.seen += 1
        if self.cut or dice.random() < self.loss:
            self.lost += 1
            return []
        if self.rate:
            self.free_at = max(self.free_at, now) + size / self.rate
            if self.free_at > now + self.backlog:
                self.free_at -= size / self.rate
                self.lost += 1
                return []
            now = self.free_at
        copies = 2 if dice.random() < self.twice else 1
        return [now + max(0.0, self.delay + dice.uniform(-self.jitter, self.jitter)) for _ in range(copies)]


class Relay(threading.Thread):
    """`port` here leads to `target`; `up` is towards it, `down` back."""

    def __init__(self, target, seed=0):
        super().__init__(daemon=True)
        self.up, self.down = Way(), Way()
        self.target, self.dice = target, random.Random(seed)
        self.front = self.bound(("127.0.0.1", 0))
        self.port = self.front.getsockname()[1]
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.front, selectors.EVENT_READ)
        self.peers, self.back, self.waiting, self.order = {}, {}, [], 0
        self.ends = threading.Event()
        self.start()

    @staticmethod
    def bound(address):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.setblocking(False)
        made.bind(address)
        return made

    def run(self):
        while not self.ends.is_set():
            wait = max(0.0, self.waiting[0][0] - time.monotonic()) if self.waiting else 0.05
            for key, _ in self.selector.select(min(wait, 0.05)):
                self.drain(key.fileobj)
            while self.waiting and self.waiting[0][0] <= time.monotonic():
                _, _, sender, data, to = heapq.heappop(self.waiting)
                self.send(sender, data, to)
        for one in (self.front, *self.back):
            one.close()

    def drain(self, readable):
        while True:
            try:
                data, source = readable.recvfrom(DATAGRAM)
            except (BlockingIOError, ConnectionRefusedError):
                # Nobody listens there now: as silent as the network would be.
                return
            if readable is self.front:
                self.forward(self.up, self.peer(source), data, self.target)
            else:
                self.forward(self.down, self.front, data, self.back[readable])

    def peer(self, source):
        """The socket that stands for `source` before the target."""
        if source not in self.peers:
            made = self.bound(("127.0.0.1", 0))
            self.peers[source], self.back[made] = made, source
            self.selector.register(made, selectors.EVENT_READ)
        return self.peers[source]

    def forward(self, way, sender, data, to):
        for due in way.due(time.monotonic(), len(data), self.dice):
            if len(self.waiting) < QUEUE:
                self.order += 1
                heapq.heappush(self.waiting, (due, self.order, sender, data, to))

    def send(self, sender, data, to):
        try:
            sender.sendto(data, to)
        except (BlockingIOError, ConnectionRefusedError):
            pass

    def both(self, **rules):
        """The same for both ways."""
        for way in (self.up, self.down):
            for name, value in rules.items():
                setattr(way, name, value)

    def heal(self):
        self.both(loss=0.0, twice=0.0, delay=0.0, jitter=0.0, rate=0.0, cut=False)

    def stop(self):
        self.ends.set()
        self.join()
