"""How each kind of chart is drawn: one Vega-Lite specification a kind and page, made with altair, which checks it against the schema.

The numbers are put in by the page's script: every data set has a name. Colours are variables of the page's style, so that charts follow
light, dark and print.
"""

from __future__ import annotations

from typing import Any

#: End of an axis of bars, unless the script sets another: the whole budget, and the best accuracy.
REACH = 1.0
#: Of a linear axis: numbers that would be all zeros are written with their power of ten.
SHORT = "abs(datum.value) >= 1e6 || (datum.value != 0 && abs(datum.value) < 1e-5) ? format(datum.value, '.2~e') : datum.label"


def specifications() -> dict[str, dict[str, Any]]:
    """Kind of chart -> its Vega-Lite specification, checked against Vega-Lite's schema; the numbers are put in by the page.

    :raises ImportError: the package ``altair`` is missing.
    """
    import altair as alt

    def bare(chart: Any) -> dict[str, Any]:
        spec: dict[str, Any] = chart.to_dict()
        spec.pop("config", None)  # the page has its own, in colours that follow light and dark
        return spec

    return {
        "lines": bare(_curves(alt, "lines", 190)),
        "log": bare(_curves(alt, "lines", 210, log=True)),
        "loss": bare(
            alt.vconcat(
                _curves(alt, "lines", 190, hide_x=True), _curves(alt, "below", 70, title="lr"), spacing=8
            ).resolve_scale(x="shared", color="independent")
        ),
        "motion": bare(_bars_of_motion(alt)),
        "rewound": bare(_bars_of_parts(alt)),
        "metric": bare(_bars_of_metric(alt)),
        "histogram": bare(_histogram(alt)),
        "time": bare(_over_time(alt)),
    }


def _number_tips(alt: Any, *fields: tuple[str, str]) -> list[Any]:
    return [
        alt.Tooltip(f"{name}:{'Q' if kind == 'Q' else 'N'}", title=title, **({"format": ".4~g"} if kind == "Q" else {}))
        for name, title, kind in ((n, *t.split("|")) for n, t in fields)
    ]


def _curves(alt: Any, data: str, height: int, *, log: bool = False, hide_x: bool = False, title: str = "") -> Any:
    source = alt.NamedData(name=data)
    axis = alt.Axis(title=None if hide_x else "step", labels=not hide_x, tickMinStep=1, grid=False)
    x = alt.X("x:Q", axis=axis, scale=alt.Scale(nice=False, zero=False))
    scale = alt.Scale(type="log", nice=True) if log else alt.Scale(zero=False, nice=True)
    # of a logarithmic axis only the powers of ten have lines
    power = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-6"
    written: dict[str, Any] = {"labelExpr": SHORT}
    if log:
        written = {
            "format": "~g",
            "labelExpr": f"datum.label === '' ? '' : {SHORT}",
            "gridOpacity": {"condition": {"test": power, "value": 1}, "value": 0},
        }
    y = alt.Y(
        "drawn:Q",
        axis=alt.Axis(title=title or None, minExtent=48, tickCount=3 if title else 5, **written),
        scale=scale,
    )
    style = {
        "detail": alt.Detail("series:N"),
        "color": alt.Color("ink:N", scale=None),
    }
    tips = _number_tips(alt, ("series", "curve|N"), ("x", "step|Q"), ("text", "value|N"))
    base = alt.Chart(source).encode(x=x)
    line = base.mark_line(clip=False, interpolate="linear").encode(
        y=y,
        strokeDash=alt.StrokeDash("dash:N", scale=None),
        strokeWidth=alt.StrokeWidth("wide:Q", scale=None),
        **style,
    )
    dots = base.mark_point(filled=True, size=28, opacity=1).encode(y=y, **style).transform_filter("datum.dots")
    # the pointer's target: larger than the visible point
    hover = base.mark_point(filled=True, size=160, opacity=0).encode(y=y, tooltip=tips, **style)
    bad = (
        base.mark_point(shape="cross", angle=45, size=60, filled=True, opacity=1)
        .encode(y=alt.value(0), tooltip=tips, color=alt.value("var(--fail)"))
        .transform_filter("datum.bad")
    )
    return alt.layer(line, dots, bad, hover).properties(height=height, width=300)


def _bars_of_motion(alt: Any) -> Any:
    scale = alt.Scale(domainMin=0, domainMax=alt.ExprRef("reach"), clamp=True, nice=False)
    x = alt.X("used:Q", axis=alt.Axis(title="share of the LR budget", format="~%", tickCount=5), scale=scale)
    y = alt.Y("layer:N", sort=None, axis=alt.Axis(title=None, labelLimit=400))
    tips = _number_tips(
        alt,
        ("full-layer", "layer|N"),
        ("text", "share of the LR budget|N"),
        ("range", "its tensors|N"),
        ("state", "remarks|N"),
    )
    data = alt.NamedData(name="bars")
    band = (
        alt.Chart(alt.NamedData(name="band"))
        .mark_rect(color="var(--band)", opacity=1)
        .encode(x=alt.X("from:Q", scale=scale), x2="to:Q")
    )
    bars = (
        alt.Chart(data)
        .mark_bar(height=alt.RelativeBandSize(band=0.62))
        .encode(x=x, y=y, color=alt.Color("ink:N", scale=None), tooltip=tips)
    )
    spread = (
        alt.Chart(data)
        .mark_rule(strokeWidth=1.4, color="var(--ink)")
        .encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, tooltip=tips)
    )
    label = (
        alt.Chart(data)
        .mark_text(align="left", dx=5, color="var(--ink)", fontSize=11)
        .encode(x=alt.X("end:Q", scale=scale), y=y, text="label:N", tooltip=tips)
    )
    reach = alt.param(name="reach", value=REACH)
    return alt.layer(band, bars, spread, label).add_params(reach).properties(height=alt.Step(21), width=300)


def _bars_of_parts(alt: Any) -> Any:
    scale = alt.Scale(domainMin=0, domainMax=alt.ExprRef("reach"), clamp=True, nice=False)
    x = alt.X("loss:Q", scale=scale, axis=alt.Axis(title="loss", labelExpr=SHORT, tickCount=5))
    y = alt.Y("part:N", sort=None, axis=alt.Axis(title=None, labelLimit=400))
    offset = alt.YOffset("how:N", sort=None)
    tips = _number_tips(
        alt, ("full-part", "part|N"), ("how", "reset to|N"), ("loss", "loss|Q"), ("accuracy", "accuracy|Q")
    )
    data = alt.NamedData(name="bars")
    bars = (
        alt.Chart(data).mark_bar().encode(x=x, y=y, yOffset=offset, color=alt.Color("ink:N", scale=None), tooltip=tips)
    )
    label = (
        alt.Chart(data)
        .mark_text(align="left", dx=5, color="var(--ink)", fontSize=11)
        .encode(x=x, y=y, yOffset=offset, text="label:N", tooltip=tips)
    )
    reach = alt.param(name="reach", value=REACH)
    return alt.layer(bars, _rules(alt, scale), label).add_params(reach).properties(height=alt.Step(17), width=300)


def _rules(alt: Any, scale: Any) -> Any:
    return (
        alt.Chart(alt.NamedData(name="rules"))
        .mark_rule(strokeWidth=2)
        .encode(
            x=alt.X("at:Q", scale=scale),
            color=alt.Color("ink:N", scale=None),
            strokeDash=alt.StrokeDash("dash:N", scale=None),
            tooltip=_number_tips(alt, ("what", "line|N"), ("at", "value|Q")),
        )
    )


def _bars_of_metric(alt: Any) -> Any:
    scale = alt.Scale(domainMin=alt.ExprRef("low"), domainMax=alt.ExprRef("high"), nice=False)
    bars = (
        alt.Chart(alt.NamedData(name="bars"))
        .mark_bar(height=alt.RelativeBandSize(band=0.62))
        .encode(
            x=alt.X("value:Q", scale=scale, axis=alt.Axis(title=None, labelExpr=SHORT, tickCount=5)),
            y=alt.Y("when:N", sort=None, axis=alt.Axis(title=None)),
            color=alt.Color("ink:N", scale=None),
            tooltip=_number_tips(alt, ("when", "when|N"), ("value", "value|Q")),
        )
    )
    ends = alt.param(name="low", value=0.0), alt.param(name="high", value=REACH)
    return alt.layer(bars, _rules(alt, scale)).add_params(*ends).properties(height=alt.Step(26), width=300)


def _histogram(alt: Any) -> Any:
    data = alt.NamedData(name="bins")
    tips = _number_tips(alt, ("series", "when|N"), ("from", "from|Q"), ("to", "to|Q"), ("count", "weights|Q"))
    x = alt.X(
        "from:Q", axis=alt.Axis(title="weight", labelExpr=SHORT, tickCount=5), scale=alt.Scale(nice=False, zero=False)
    )
    y = alt.Y(
        "density:Q",
        scale=alt.Scale(domainMin=0, nice=True),
        axis=alt.Axis(title="density", labelExpr=SHORT, minExtent=48, tickCount=4),
    )
    ink = alt.Color("ink:N", scale=None)
    outline = (
        alt.Chart(data)
        .mark_line(interpolate="step-after")
        .encode(
            x=x,
            y=y,
            color=ink,
            detail="series:N",
            strokeDash=alt.StrokeDash("dash:N", scale=None),
            strokeWidth=alt.StrokeWidth("wide:Q", scale=None),
        )
    )
    hover = alt.Chart(data).mark_bar(opacity=0).encode(x=x, x2="to:Q", y=y, tooltip=tips, detail="series:N")
    return alt.layer(outline, hover).properties(height=190, width=300)


def _over_time(alt: Any) -> Any:
    tips = _number_tips(alt, ("step", "step|Q"), ("from", "from|Q"), ("to", "to|Q"), ("count", "weights|Q"))
    return (
        alt.Chart(alt.NamedData(name="bins"))
        .mark_rect(color="var(--head)", strokeWidth=0)
        .encode(
            x=alt.X(
                "from:Q",
                axis=alt.Axis(title="weight", labelExpr=SHORT, tickCount=5),
                scale=alt.Scale(nice=False, zero=False),
            ),
            x2="to:Q",
            y=alt.Y("step:O", sort=None, axis=alt.Axis(title="step", minExtent=48)),
            fillOpacity=alt.FillOpacity("density:Q", scale=alt.Scale(range=[0.03, 1]), legend=None),
            tooltip=tips,
        )
        .properties(height=190, width=300)
    )
