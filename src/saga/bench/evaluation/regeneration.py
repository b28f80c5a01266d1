"""What devices spend regenerating, and how full their memory is; it reads the main table's cells."""

from __future__ import annotations

from saga.bench.evaluation.cells import Cell, Scale
from saga.bench.evaluation.claims import Claims
from saga.bench.evaluation.comparison import BASE, OURS, at_load, at_paper_load, curves, share_text
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.rows import Found, judge
from saga.bench.evaluation.sections import Forest, Lines, Section, claims_table
from saga.bench.evaluation.systems import PAPER
from saga.bench.evaluation.verdicts import of_share
from saga.bench.tables import Table, write_share


def regeneration_cells(scale: Scale, _claims: Claims) -> list[Cell]:
    """Three systems at the paper's load and over the sweep; the main table has them too."""
    systems = ("vllm", BASE, PAPER, OURS)
    here = [at_paper_load(scale, system, "swe_bench") for system in systems]
    sweep = [at_load(scale, system, "swe_bench", load) for load in scale.loads for system in systems]
    return list(dict.fromkeys([*here, *sweep]))


def regeneration_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """What share of device time goes into prefilling again, and how full the memory is."""
    table = claims.table("regeneration")
    rows = []
    for figure, word in (("regenerated_time_share", "time regenerating"), ("kv_used_mean_share", "KV in use")):
        for system in ("vllm", BASE, PAPER):
            claim = table.value(figure, system=system, workload="swe_bench")
            here = Found(results.estimate(at_paper_load(scale, system, "swe_bench"), figure))
            by_load = {
                load: Found(results.estimate(at_load(scale, system, "swe_bench", load), figure)) for load in scale.loads
            }
            rows.append(judge(f"{system}: {word}", claim, "share", of_share, here, by_load))
    systems = ("vllm", BASE, PAPER, OURS)
    lines = [
        (
            f"{load:g}",
            *(
                share_text(results, at_load(scale, system, "swe_bench", load), "regenerated_time_share")
                for system in systems
            ),
        )
        for load in scale.loads
    ]
    sweep = Table("swe_bench: device time spent regenerating, by oversubscription", ("load", *systems), tuple(lines))
    drawn = curves(results, scale, systems, "swe_bench", "regenerated_time_share")
    cells = regeneration_cells(scale, claims)
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            "Share of the devices' busy time that would go into full prefill chunks of the tokens that were "
            "prefilled again although an endless cache would have had them; KV in use is what running calls hold. "
            "The paper does not say at which load its shares were taken: ours are at its 80 %, and over the sweep."
        ),
        rows=rows,
        tables=[claims_table("swe_bench at the paper's load", "figure", rows), sweep],
        drawings=[
            Forest("Claimed and simulated shares", "share", rows, one=None),
            Lines("Device time spent regenerating", "oversubscription", "share of device time", drawn),
        ],
        reasons=_where_shares_match(scale, results, claims),
        missing=results.missing(cells),
        total=results.count(cells),
    )


def _where_shares_match(scale: Scale, results: Results, claims: Claims) -> list[str]:
    """For each system, at which load of the sweep its share comes nearest the claim."""
    words = []
    for system in ("vllm", BASE, PAPER):
        claim = claims.table("regeneration").value("regenerated_time_share", system=system, workload="swe_bench")
        found = [
            (load, share)
            for load in scale.loads
            if (share := results.mean(at_load(scale, system, "swe_bench", load), "regenerated_time_share")) is not None
        ]
        if claim is None or not found:
            continue
        load, share = min(found, key=lambda point: abs(point[1] - claim))
        least, most = min(share for _, share in found), max(share for _, share in found)
        words.append(
            f"{system}: claimed {write_share(claim)}; over the sweep ours goes from {write_share(least)} to "
            f"{write_share(most)} and comes nearest the claim at oversubscription {load:g} ({write_share(share)})."
        )
    return words
