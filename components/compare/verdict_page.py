"""The page that says why a candidate was deployed or kept out."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from rsp.components.compare.judge import CONFIDENCE, Evidence, Verdict, draw_gains
from rsp.shared.metrics import foreground_iou
from rsp.shared.page import document, histogram, number, numbers, paragraph, table
from rsp.shared.tiles import zxy

TITLE = "Candidate against champion"
# Blocks that are listed, of those that lost and of those that gained.
LISTED = 12
BINS = 20


def verdict_page(verdict: Verdict, evidence: Evidence, *, names: Mapping[str, str], seed: int = 0) -> str:
    """Return the page: the verdict, both IoUs, the gain of the draws, and the blocks that changed most.

    It has some kilobytes whatever the area.

    Args:
        verdict: From `rsp.components.compare.judge.judge`.
        evidence: What it rests on.
        names: What was compared, as `{"champion": "1a2b3c4d"}`.
        seed: Of the draws, the verdict's.
    """
    word = "deploy the candidate" if verdict.deploy else "keep what serves"
    body = f"<p><strong>Verdict: {word}.</strong> {escape(verdict.reason)}.</p>\n"
    boxes = {"IoU of the candidate": number(verdict.iou, 4)}
    if evidence.champion is not None:
        boxes |= {
            "IoU of the champion": number(verdict.champion_iou, 4),
            "gain": _signed(verdict.gain),
            f"{CONFIDENCE:.0%} of the draws gain more than": _signed(verdict.low),
        }
    body += numbers(boxes | {"blocks": f"{verdict.blocks:,}", "held-out tiles": f"{verdict.tiles:,}"})
    body += table(["", ""], [[name, text or "-"] for name, text in names.items()])
    if evidence.champion is not None:
        body += _draws(evidence, seed) + _blocks(evidence)
    return document(TITLE, body)


def _signed(value: float) -> str:
    return "-" if value != value else f"{value:+.4f}"


def _draws(evidence: Evidence, seed: int) -> str:
    assert evidence.champion is not None
    gains = draw_gains(evidence.candidate.counts, evidence.champion.counts, seed)
    gains = gains[np.isfinite(gains)]
    if not gains.size:
        return paragraph("No draw has an IoU: neither labels nor masks hold any class but the background.")
    counts, edges = np.histogram(gains, BINS)
    text = (
        f"Each of the {len(gains):,} draws takes as many blocks as there are, with replacement, the same ones for "
        "both models: a gain that only chance makes is on both sides of zero."
    )
    return (
        "<h2>The gain, draw by draw</h2>\n"
        + histogram("draws, by gain of IoU", [round(float(each), 4) for each in edges], counts.tolist())
        + paragraph(text)
    )


def _blocks(evidence: Evidence) -> str:
    """Return the tables of the blocks that lost most and gained most."""
    assert evidence.champion is not None
    rows = []
    for tile, ours, theirs in zip(
        evidence.candidate.tiles, evidence.candidate.counts, evidence.champion.counts, strict=True
    ):
        now, before = foreground_iou(ours), foreground_iou(theirs)
        if now == now and before == before:
            cells = [zxy(tile), number(before, 4), number(now, 4), _signed(now - before)]
            rows.append((now - before, tile, [*cells, f"{int(ours[1:].sum()):,}"]))
    rows.sort()
    heads = ["first tile of the block", "champion", "candidate", "gain", "labelled pixels"]
    body = ""
    for title, chosen in (
        ("Blocks that lost most", [row for gain, _, row in rows if gain < 0][:LISTED]),
        ("Blocks that gained most", [row for gain, _, row in reversed(rows) if gain > 0][:LISTED]),
    ):
        body += f"<h2>{title}</h2>\n" + (table(heads, chosen) if chosen else paragraph("There are none."))
    left_out = len(evidence.candidate.tiles) - len(rows)
    if left_out:
        body += paragraph(f"{left_out:,} more blocks have no IoU: no class but the background is in them.")
    return body
