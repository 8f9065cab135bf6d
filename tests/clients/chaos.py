"""Kill after kill: one of two workers is killed and started again, over and over, under clients that ask for everything there
is, and each answer is compared with the one given at rest. `scripts/chaos` runs this; `test_failures_workers` a short form."""

import argparse
import concurrent.futures
import contextlib
import copy
import dataclasses
import pathlib
import random
import sys
import tempfile
import threading
import time

from contract import chunks, collect, same, whole
from fleet import Fleet
from servers import GOLDEN, real_model

# A silence of this length around a death is more than a step.
FELT = 0.1
# A death is noticed by then, with the default timers, and what was lost is on its way elsewhere.
SETTLED = 3.0
# What is asked for, in turn; between them every way to sample and every form of answer.
KINDS = [
    {"temperature": 0},
    {"n": 3, "temperature": 1.3},
    {"n": 2, "best_of": 4, "top_p": 0.9},
    {"stop": ["e", "qu", "\n"], "frequency_penalty": 0.7},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4, "top_k": 20},
    {"logprobs": 5, "min_p": 0.02},
    {"echo": True, "logprobs": 1, "logit_bias": {"101": -100, "116": 2}},
    {"loglikelihood": True, "logprobs": 2, "temperature": 0.7},
    {"prompts": 3, "n": 2},
    {"long": 40, "temperature": 1.8},
]


@dataclasses.dataclass
class Rules:
    directory: pathlib.Path
    kills: int = 20
    streams: int = 32
    step_ms: int = 5
    tokens: int = 120
    weights: str | None = None
    seed: int = 1
    # Two thirds of the kinds are streamed, half of the requests have an adapter.
    requests: int = 60


@dataclasses.dataclass
class Report:
    kills: int = 0
    answers: int = 0
    across: int = 0
    replays: float = 0
    refused: dict = dataclasses.field(default_factory=dict)
    alarms: float = 0
    failed: int = 0
    gaps: int = 0
    duplicates: int = 0
    unequal: int = 0
    faults: list = dataclasses.field(default_factory=list)
    # Of each stream that was under way when a worker died: its longest silence around a death.
    stalls: list = dataclasses.field(default_factory=list)
    # (Seconds, of which request) of the longest silence.
    longest: tuple = (0.0, "")

    def __add__(self, other):
        both = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, mine in both.items():
            theirs = getattr(other, name)
            if name == "longest":
                both[name] = max(mine, theirs)
            elif name == "refused":
                both[name] = {why: mine.get(why, 0) + theirs.get(why, 0) for why in mine | theirs}
            else:
                both[name] = mine + theirs
        return Report(**both)

    def silences(self):
        """The streams' silences in words: of all of them, and of those that lasted."""
        felt = [stall for stall in self.stalls if stall >= FELT]
        return [
            ("streams that a death met", f"{len(self.stalls)}, their silence {quantiles(self.stalls)}"),
            (f"of which silent for {FELT} s", f"{len(felt)}, their silence {quantiles(felt)}"),
        ]

    def __str__(self):
        rows = [
            ("kills", self.kills),
            ("answers", f"{self.answers}, of which {self.across} while a worker died"),
            ("groups that went on elsewhere", int(self.replays)),
            ("engines taken for stuck", int(self.alarms)),
            ("groups given up", ", ".join(f"{int(count)} {why}" for why, count in self.refused.items() if count) or 0),
            ("failed", self.failed),
            ("with a gap", self.gaps),
            ("with a duplicate", self.duplicates),
            ("with other bytes", self.unequal),
            *self.silences(),
        ]
        return "\n".join(f"{name:32}{value}" for name, value in rows)


def quantiles(seconds):
    ordered = sorted(seconds) or [0.0]
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * of))] for of in (0.5, 0.99))
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, longest {ordered[-1]:.2f} s"


def requests(rules, adapter):
    """Every request that is asked for, with how it is asked."""
    made = []
    for number in range(rules.requests):
        kind = dict(KINDS[number % len(KINDS)])
        prompt = f"chaos {number} " * kind.pop("long", 1)
        prompts = kind.pop("prompts", 1)
        body = {"prompt": [f"{prompt} {k}" for k in range(prompts)] if prompts > 1 else prompt, "seed": number}
        body |= {"max_tokens": rules.tokens // 2 + number * rules.tokens // rules.requests, "ignore_eos": True, **kind}
        if number % 2:
            body["peft"] = adapter
        made.append((body, number % 3 != 2))
    return made


class Chaos:
    """The clients and what they have seen."""

    def __init__(self, fleet, cases, rules):
        self.fleet, self.cases, self.rules = fleet, cases, rules
        self.report, self.lock, self.over = Report(), threading.Lock(), threading.Event()
        self.deaths, self.next = [], 0
        self.clients = [threading.Thread(target=self.client, daemon=True) for _ in range(rules.streams)]

    def client(self):
        # Of its own: threads that share a client close each other's connections, once in ten thousand requests.
        router = copy.copy(self.fleet.router)
        with router.client() as router.http:
            self.keep_asking(router)

    def keep_asking(self, router):
        while not self.over.is_set():
            with self.lock:
                body, is_streamed, expected = self.cases[self.next % len(self.cases)]
                self.next += 1
            began = time.monotonic()
            try:
                answer, silences = self.ask(router, body, is_streamed)
            except Exception as error:
                self.note(began, body, [], f"{type(error).__name__}: {error}", "failed")
                continue
            self.note(began, body, silences, *judged(answer, expected))

    def ask(self, router, body, is_streamed):
        """The answer, and for a stream that tells as it goes: (when, how long) of its silences."""
        if not is_streamed:
            return whole(router, **body), []
        silences, documents, last = [], [], None
        asked = {"model": self.fleet.served, "stream": True, **body}
        with router.http.stream("POST", "/v1/completions", json=asked) as response:
            assert response.status_code == 200, response.read()
            for document in chunks(response):
                now = time.monotonic()
                if last is not None:
                    silences.append((now, now - last))
                last = now
                documents.append(document)
            answer = collect(documents, response.headers)
        return answer, [] if "best_of" in body else silences

    def note(self, began, body, silences, fault, kind):
        with self.lock:
            deaths = [death for death in self.deaths if death >= began]
            self.report.answers += 1
            self.report.across += bool(deaths)
            around = [length for at, length in silences if any(at - length <= death <= at for death in deaths)]
            if around:
                self.report.stalls.append(max(around))
                self.report.longest = max(self.report.longest, (max(around), str(body)))
            if fault:
                setattr(self.report, kind, getattr(self.report, kind) + 1)
                self.report.faults.append(f"{kind}: {fault}: {body}")

    def kill(self, dice):
        """One worker dies and comes back. It is started again once the router has missed the old one's words, as an init
        system would a second later."""
        victim = dice.choice(self.fleet.names)
        self.fleet.kill(victim)
        self.deaths.append(time.monotonic())
        time.sleep(1.2)
        self.fleet.start_worker(victim)
        router, new = self.fleet.router, self.fleet.workers[victim]
        new.wait_for("its welcome", lambda: "welcomed by a router" in new.log())
        router.await_workers(2)
        # So that what it lost has gone on, however slow the machine is: who is killed again and again soon after a request
        # came is taken to die of it.
        time.sleep(max(0.0, self.deaths[-1] + SETTLED - time.monotonic()))
        served = self.report.answers + self.rules.streams // 2
        router.wait_until("answers", lambda: self.report.answers >= served)
        time.sleep(dice.uniform(0.5, 1.5))

    def play(self):
        dice = random.Random(self.rules.seed)
        before = self.fleet.router.replays()
        for client in self.clients:
            client.start()
        self.fleet.router.wait_until("load", lambda: self.next >= self.rules.streams)
        time.sleep(0.5)
        for number in range(self.rules.kills):
            self.kill(dice)
            self.report.kills = number + 1
            if sys.stderr.isatty() or number % 10 == 9:
                print(f"chaos: {number + 1} kills, {self.report.answers} answers, {len(self.report.faults)} faults", file=sys.stderr)
        self.over.set()
        for client in self.clients:
            client.join(120)
            assert not client.is_alive(), "a client hangs"
        metric = self.fleet.router.metric
        self.report.replays = self.fleet.router.replays() - before
        self.report.refused = {why: metric("shoal_replays_refused_total", f'why="{why}"') for why in ("poison", "attempts", "budget")}
        self.report.alarms = metric("shoal_worker_stalls_total")
        return self.report


def judged(answer, expected):
    """(what is wrong, which kind of wrong)"""
    if same(answer, expected):
        return None, None
    for index, choice in expected.choices.items():
        found = answer.choices.get(index)
        if found is None or len(found.text) < len(choice.text):
            return f"choice {index} is shorter", "gaps"
        if len(found.text) > len(choice.text):
            return f"choice {index} is longer", "duplicates"
    return "the same length, but not the same", "unequal"


def register(fleet, directory):
    """An adapter for the model that is served; its name."""
    files = {name: (name, (directory / name).read_bytes()) for name in ("adapter_config.json", "adapter_model.safetensors")}
    response = fleet.router.http.put("/v1/adapters/chaotic", files=files)
    assert response.status_code in (200, 201), response.text
    return "chaotic"


def play(rules):
    """All of it; the report."""
    fleet = Fleet(rules.directory, step_ms=rules.step_ms, weights=rules.weights, slots=256)
    if rules.weights:
        fleet.served = "SmolLM2-135M-Instruct"
        fleet.router.models = [fleet.served]
    try:
        fleet.start()
        adapter = register(fleet, GOLDEN / ("adapters/pirate" if rules.weights else "tiny/tiny-qv"))
        asked = requests(rules, adapter)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            at_rest = pool.map(lambda one: whole(fleet.router, **one[0]), asked)
            cases = [(*one, expected) for one, expected in zip(asked, at_rest, strict=True)]
        report = Chaos(fleet, cases, rules).play()
        fleet.stop()
        return report
    finally:
        fleet.relieve()


def main():
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often a worker is killed (default 20; one takes about 6 s)")
    parser.add_argument("--streams", type=int, default=32, help="requests at once (default 32)")
    parser.add_argument("--tokens", type=int, default=120, help="tokens of an answer, about (default 120)")
    parser.add_argument("--step-ms", type=int, default=5, help="a step of the scripted engine (default 5)")
    parser.add_argument(
        "--real", type=int, nargs="?", const=-1, default=0, metavar="N",
        help="real weights ($SHOAL_TEST_MODEL) instead of the scripted engine, for N of the kills (default: for all)",
    )
    parser.add_argument("--seed", type=int, default=1, help="who dies when (default 1)")
    parser.add_argument("--keep", type=pathlib.Path, help="a new directory for the logs, which are thrown away otherwise")
    chosen = parser.parse_args()
    if chosen.keep:
        chosen.keep.mkdir(parents=True)
    with contextlib.nullcontext(chosen.keep) if chosen.keep else tempfile.TemporaryDirectory(prefix="shoal-chaos-") as directory:
        counts = {"streams": chosen.streams, "tokens": chosen.tokens, "step_ms": chosen.step_ms, "seed": chosen.seed}
        real = min(chosen.real, chosen.kills) if chosen.real >= 0 else chosen.kills
        parts = {}
        for name, weights, kills in [("real", real_model, real), ("scripted", lambda: None, chosen.kills - real)]:
            if kills:
                rules = Rules(pathlib.Path(directory) / name, weights=weights(), kills=kills, **counts)
                parts[name] = play(rules)
    report = sum(parts.values(), Report())
    print(report)
    if len(parts) > 1:
        for name, part in parts.items():
            print("\n".join(f"{name}: {row:26}{value}" for row, value in part.silences()))
    if report.stalls:
        print(f"the longest was felt by: {report.longest[1]}")
    for fault in report.faults[:20]:
        print(f"fault: {fault}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
