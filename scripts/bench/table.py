"""Tells what bench-peers measured: medians over the rounds, and Shoal's ratio to the best peer within each round, in
Markdown. Pure: made of what was measured, a list of Sample."""

import dataclasses
import statistics

SHOAL = "shoal"

# Cores of others from which on figures are not to be trusted.
NOTABLE_OTHERS = 0.15


@dataclasses.dataclass
class Sample:
    """One row of `shoal bench` at one server in one round."""

    family: str
    # A family's peers that read other files than Shoal are compared with every model of the family.
    model: str
    server: str
    round: int
    # "load", "adapters" (the same with adapters in turn) or "prefill".
    kind: str
    concurrency: int
    tokens_per_s: float
    prompt_tokens: float
    ttft_p50: float
    ttft_p99: float
    # Absent of answers of one token.
    itl_p50: float | None
    itl_p99: float | None


@dataclasses.dataclass
class Start:
    """How a server came up in one round."""

    model: str
    server: str
    round: int
    ready_s: float
    memory_mb: float
    # Cores that other programs kept busy while it was measured.
    others: float


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(samples, peers, figure, better):
    """Shoal's figure over the best peer's, round by round, and then the median: a round is measured in one go, and the
    machine drifts between them."""
    ratios = []
    for sample in samples:
        of_round = [getattr(peer, figure) for peer in peers if peer.round == sample.round]
        of_round = [value for value in of_round if value]
        if of_round and getattr(sample, figure):
            ratios.append(getattr(sample, figure) / better(of_round))
    return median(ratios)


def row(cells):
    return "| " + " | ".join(cells) + " |"


def cell_rows(samples, peers_of_family, title):
    """The rows of one model at one concurrency: Shoal with its ratios, then the peers."""
    shoal = [sample for sample in samples if sample.server == SHOAL]
    peers = [sample for sample in samples if sample.server != SHOAL] + peers_of_family
    for server, model in dict.fromkeys((sample.server, sample.model) for sample in shoal + peers):
        mine = [sample for sample in shoal + peers if (sample.server, sample.model) == (server, model)]
        rates = [sample.tokens_per_s for sample in mine]
        of = {
            name: median(getattr(sample, name) for sample in mine)
            for name in ("ttft_p50", "ttft_p99", "itl_p50", "itl_p99")
        }
        ratios = ["", "", "", ""]
        if server == SHOAL:
            wanted = (("tokens_per_s", max), ("ttft_p50", min), ("ttft_p99", min), ("itl_p99", min))
            ratios = [number(ratio(mine, peers, figure, better)) for figure, better in wanted]
        yield row(
            [
                *title,
                server if model == samples[0].model else f"{server} ({model})",
                number(median(rates)),
                f"{number(min(rates))}-{number(max(rates))}",
                f"{number(of['ttft_p50'])} / {number(of['ttft_p99'])}",
                f"{number(of['itl_p50'])} / {number(of['itl_p99'])}",
                *ratios,
            ]
        )


def cells(samples, kind):
    """(model, concurrency, samples of it, samples of the family's peers with other files)."""
    chosen = [sample for sample in samples if sample.kind == kind]
    of_shoal = dict.fromkeys((sample.family, sample.model) for sample in chosen if sample.server == SHOAL)
    # Without Shoal the peers are told by themselves.
    models = list(of_shoal) or list(dict.fromkeys((sample.family, sample.model) for sample in chosen))
    for family, model in models:
        for concurrency in sorted({sample.concurrency for sample in chosen}):
            at = [sample for sample in chosen if sample.family == family and sample.concurrency == concurrency]
            mine = [sample for sample in at if sample.model == model]
            others = [
                sample
                for sample in at
                if sample.server != SHOAL and sample.model.endswith("-bf16") and sample not in mine
            ]
            if mine:
                yield model, concurrency, mine, others


def load_table(samples):
    head = ["model", "concurrency", "server", "tokens/s", "min-max", "TTFT ms p50 / p99", "ITL ms p50 / p99"]
    head += ["tokens/s ÷ best", "TTFT p50 ÷ best", "TTFT p99 ÷ best", "ITL p99 ÷ best"]
    lines = [row(head), row(["---"] * len(head))]
    for model, concurrency, mine, others in cells(samples, "load"):
        lines += cell_rows(mine, others, [model, str(concurrency)])
    return lines


def prefill_table(samples):
    """A prompt alone: its tokens over the time to the first text."""
    head = ["model", "server", "prompt tokens", "TTFT ms p50", "prompt tokens/s", "TTFT ÷ best", "TTFT ÷ llama-server"]
    lines = [row(head), row(["---"] * len(head))]
    for _, _, mine, others in cells(samples, "prefill"):
        both = mine + others
        peers = [sample for sample in both if sample.server != SHOAL]
        for server, model in dict.fromkeys((sample.server, sample.model) for sample in both):
            own = [sample for sample in both if (sample.server, sample.model) == (server, model)]
            ttft, tokens = median(sample.ttft_p50 for sample in own), median(sample.prompt_tokens for sample in own)
            ratios = ["", ""]
            if server == SHOAL:
                llama = [peer for peer in peers if peer.server == "llama-server"]
                ratios = [number(ratio(own, group, "ttft_p50", min)) for group in (peers, llama)]
            title = mine[0].model if model == mine[0].model else f"{mine[0].model} ({model})"
            lines.append(row([title, server, number(tokens), number(ttft), number(tokens / ttft * 1000), *ratios]))
    return lines


def adapters_table(samples):
    """What adapters cost: tokens/s with them over those without, within a round, of each server by itself."""
    head = ["model", "concurrency", "server", "tokens/s without", "with adapters", "with ÷ without", "with ÷ best peer"]
    lines = [row(head), row(["---"] * len(head))]
    for model, concurrency, mine, others in cells(samples, "adapters"):
        both = mine + others
        for server, name in dict.fromkeys((sample.server, sample.model) for sample in both):
            of_one = [s for s in samples if (s.server, s.model, s.concurrency) == (server, name, concurrency)]
            adapted = [sample for sample in of_one if sample.kind == "adapters"]
            base = [sample for sample in of_one if sample.kind == "load"]
            peers = [sample for sample in both if sample.server != SHOAL] if server == SHOAL else []
            kept = ratio(adapted, base, "tokens_per_s", max)
            rates = [median(sample.tokens_per_s for sample in some) for some in (base, adapted)]
            title = server if name == mine[0].model else f"{server} ({name})"
            of_best = number(ratio(adapted, peers, "tokens_per_s", max)) if peers else ""
            lines.append(row([model, str(concurrency), title, *map(number, rates), number(kept), of_best]))
    return lines


def start_table(starts):
    head = ["server", "model", "ready after s", "memory MB", "cores taken by others"]
    lines = [row(head), row(["---"] * len(head))]
    for server, model in dict.fromkeys((start.server, start.model) for start in starts):
        mine = [start for start in starts if (start.server, start.model) == (server, model)]
        figures = [median(getattr(start, name) for start in mine) for name in ("ready_s", "memory_mb", "others")]
        lines.append(row([server, model, *map(number, figures)]))
    return lines


def tell(samples, starts, rounds):
    text = [
        f"Medians of {rounds} rounds; ratios are of one round each, then their median. Below 1 is better for times.",
        "",
    ]
    for title, lines in (
        ("Load", load_table(samples)),
        ("Adapters", adapters_table(samples)),
        ("Prefill: one prompt, one client", prefill_table(samples)),
        ("Start", start_table(starts)),
    ):
        if len(lines) > 2:
            text += [f"**{title}**", "", *lines, ""]
    disturbed = [start for start in starts if start.others > NOTABLE_OTHERS]
    if disturbed:
        worst = max(start.others for start in disturbed)
        text.append(
            f"**Not to be trusted**: others kept up to {worst:.1f} cores busy in {len(disturbed)} of {len(starts)} "
            "measurements. Peers whose threads wait in spin loops lose most by it."
        )
    return "\n".join(text)
