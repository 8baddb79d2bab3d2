"""The figure of `em-evals steer`: one self-contained HTML page, drawn by plotly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from em_evals import content
from em_evals.records import Measured, SteeringPoint, SteeringStudy

_COLOURS = {"direction": "#c44e52", "random": "#8c8c8c", "control": "#4c72b0"}


def write(study: SteeringStudy, path: Path) -> None:
    """Draw margins, coherence and repetition over scales at the chosen layer, and the margins of every layer.

    Damaged conditions are crosses, whatever their margins.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    here = [point for point in study.points if point.layer == study.chosen_layer]
    at = f"layer {study.chosen_layer}"
    panels = {
        f"{at}: in-domain margin": "in_domain",
        f"{at}: out-of-domain margin": "out_of_domain",
        f"{at}: coherence ({study.coherence_is})": "coherence",
        f"{at}: share of repeated 4-grams": "repetition",
    }
    titles = [*panels, "direction, every layer: out-of-domain margin (× where damaged)"]
    figure = make_subplots(rows=len(titles), cols=1, subplot_titles=titles, vertical_spacing=0.06)
    for row, name in enumerate(panels.values(), start=1):
        for arm in dict.fromkeys(point.arm for point in here):
            points = sorted((one for one in here if one.arm == arm), key=lambda point: point.scale)
            figure.add_trace(_curve(arm, points, name, first=row == 1), row=row, col=1)
        figure.update_xaxes(title_text="scale", row=row, col=1)
    grid = [point for point in study.points if point.arm == "direction"]
    layers, scales = (sorted({getattr(point, name) for point in grid}) for name in ("layer", "scale"))
    found = {(point.layer, point.scale): point for point in grid}
    figure.add_trace(
        go.Heatmap(
            x=[str(layer) for layer in layers],
            y=[f"{scale:+g}" for scale in scales],
            z=[[found[layer, scale].out_of_domain.value for layer in layers] for scale in scales],
            text=[["×" if found[layer, scale].damaged else "" for layer in layers] for scale in scales],
            texttemplate="%{text}",
            colorscale="RdBu_r",
            zmid=0,
            colorbar={"title": "nats per token", "len": 0.18, "y": 0.08},
        ),
        row=len(titles),
        col=1,
    )
    figure.update_xaxes(title_text="layer", row=len(titles), col=1)
    figure.update_layout(
        title=f"Steering {study.card}: shifts from the unsteered model, nats per token",
        height=330 * len(titles),
        template="plotly_white",
    )
    with content.atomic(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True)


def _curve(arm: str, points: list[SteeringPoint], name: str, first: bool) -> Any:
    import plotly.graph_objects as go

    values: list[Measured] = [getattr(point, name) for point in points]
    ends = [[end if end is not None else one.value for end in one.interval] for one in values]
    return go.Scatter(
        x=[point.scale for point in points],
        y=[one.value for one in values],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [(high or 0) - (one.value or 0) for one, (_, high) in zip(values, ends, strict=True)],
            "arrayminus": [(one.value or 0) - (low or 0) for one, (low, _) in zip(values, ends, strict=True)],
        },
        mode="lines+markers",
        marker={"symbol": ["x" if point.damaged else "circle" for point in points], "size": 9},
        line={"color": _COLOURS[arm]},
        name=arm,
        legendgroup=arm,
        showlegend=first,
    )
