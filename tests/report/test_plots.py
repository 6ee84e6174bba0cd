"""Pictures are the same for the same numbers, and a method looks the same in all of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import image as mpl_image
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.lines import Line2D
from run_directories import store_of, write_run

from harness.config.sources import conf_root
from harness.report import curves, scores
from harness.report.plots import chosen, style
from harness.report.plots import scores as plot_scores
from harness.report.plots.costs import CATEGORIES, COSTS, front, score_against_cost
from harness.tracking.record import MEMORY

EVIL = "_<script>alert(1)</script> $x^{"
ALL = {f"score_vs_{name}" for name in (*COSTS, "rank")} | set(
    "seeds learning_rates learning_curves memory predicted_vs_measured forgetting".split()
)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A sweep over ranks that measured everything, with its trials."""
    folder = tmp_path_factory.mktemp("store")
    cost = {name: 1000 * (place + 1) for place, name in enumerate(MEMORY)}
    cost |= {"train_flops_per_token": 1e6, "predicted": dict(cost)}
    steps = [{"step": step, "development.accuracy": step / 100, "loss": 1.0} for step in (10, 20)]
    split = {"validation": {"accuracy": 0.9}, "development": {"accuracy": 0.8}, "majority": None}
    after = {"metric": "loss", "before": 3.0, "after": 3.2}
    found = {"primary_metric": "accuracy", **split, "base": {"accuracy": 0.5}, "forgetting": after}
    runs = [
        write_run(folder / "runs", EVIL, seed=seed, stage=stage, options={"rank": rank}, cost=cost, steps=steps,
                  scores=found)
        for rank in (1, 2, 4)
        for seed, stage in ((0, "tune"), (1, "final"), (2, "final"))
    ]  # fmt: skip
    uri = store_of(folder, *runs)
    return scores.load(uri), curves.load(uri)


@pytest.fixture(scope="module")
def drawn(frames: tuple[pd.DataFrame, pd.DataFrame]) -> dict[str, dict[str, bytes]]:
    return chosen.draw(*frames)


def test_a_sweep_that_measured_everything_has_every_picture(drawn: dict[str, dict[str, bytes]]) -> None:
    """Each is there as SVG and as PNG."""
    assert set(drawn) == ALL
    assert all(kinds["png"].startswith(b"\x89PNG") and b"<svg" in kinds["svg"] for kinds in drawn.values())


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes(
    drawn: dict[str, dict[str, bytes]], frames: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    """No picture holds a date, a random identifier or a path."""
    assert chosen.draw(*frames) == drawn


def test_a_method_name_is_only_a_text(drawn: dict[str, dict[str, bytes]]) -> None:
    """Markup, mathematics and a leading underscore in a name do no harm."""
    assert not any(b"<script" in kinds["svg"] for kinds in drawn.values())
    assert b"&lt;script&gt;alert(1)&lt;/script&gt; $x^{" in drawn["seeds"]["svg"]


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    """A lone run that failed has no picture at all."""
    frame = scores.load(store_of(tmp_path, write_run(tmp_path / "runs", status="failed", error="ValueError: x")))
    assert chosen.draw(frame) == {}


def test_nothing_trained_can_be_drawn(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """Zero trainable parameters fit on the axis."""
    points = chosen.points(frames[0])
    zero = points.assign(**{"cost.trainable_parameters": [0.0] * 3 + [1000.0] * (len(points) - 3)})
    figure = score_against_cost(zero, COSTS["parameters"])
    assert figure is not None
    assert style.encoded(figure, "svg")


def test_no_method_beats_one_on_the_front() -> None:
    """Worked by hand: dearer and worse is off; of two at the same cost the better is on; no cost is off."""
    costs = pd.Series([1.0, 2.0, 2.0, 3.0, 4.0, np.nan])
    found = pd.Series([0.5, 0.7, 0.6, 0.7, 0.9, 1.0])
    assert front(costs, found, True).tolist() == [True, True, False, False, True, False]
    assert front(costs, -found, False).tolist() == [True, True, False, False, True, False]


def test_a_learning_curve_ends_with_its_last_evaluation(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """Not with the score of the checkpoint that was kept, which the store has at the same step."""
    run = frames[0]["run_id"].iloc[0]
    curve = frames[1][(frames[1]["run_id"] == run) & (frames[1]["name"] == "accuracy")]
    assert curve[["step", "value"]].to_numpy().tolist() == [[10, 0.1], [20, 0.2]]


def test_a_size_is_a_number_that_a_sweep_varies(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """The rank is one, with three values; two are no curve."""
    points = chosen.points(frames[0])
    assert plot_scores.sizes(points) == ["param.method.rank"]
    assert plot_scores.sizes(points[points["param.method.rank"] != "4"]) == []


def test_learning_rates_that_were_chosen_are_no_axis(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """Those that a sweep varies are; the curve's file is named after them."""
    points = chosen.points(frames[0]).drop(columns="param.method.rank")
    points["param.train.learning_rate"] = [str(10.0 ** -(place % 3)) for place in range(len(points))]
    assert plot_scores.sizes(points.assign(stage="final")) == []
    [column] = plot_scores.sizes(points.assign(stage="run"))
    assert plot_scores.size_name(column) == "learning_rate"
    assert plot_scores.size_name("param.method.config.num_virtual_tokens") == "num_virtual_tokens"


def test_shipped_methods_look_different() -> None:
    """No two of them share color and marker, each declares its own, and another method keeps what its name gives."""
    files = sorted((conf_root() / "conf/method").glob("*.yaml"))
    methods = [path.stem for path in files if path.stem != "peft"]
    assert all(style.DRAWN_AS.search((conf_root() / f"conf/method/{name}.yaml").read_text()) for name in methods)
    assert len({style.appearance(method) for method in methods}) == len(methods) > 50
    assert style.appearance("of my own") == style.appearance("of my own")
    assert style.places(["of my own", "lora", "full"]) == ["full", "lora", "of my own"]
    assert style.appearance("lora") == ("#C0699A", "D")


def test_a_method_of_the_working_directory_declares_its_look(tmp_path: Path) -> None:
    """Its YAML's comment is read; a name that leads out of the folder, or a look that is none, is only a name."""
    folder = tmp_path / "conf/method"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# Mine.\n# Drawn as: sky star\nname: mine\n")
    (folder / "odd.yaml").write_text("# Drawn as: pink star\nname: odd\n")
    (tmp_path / "outside.yaml").write_text("# Drawn as: sky star\n")
    assert style.appearance("mine") == ("#3A94CC", "*")
    assert style.places(["odd", "mine", "full"]) == ["full", "mine", "odd"]
    assert style.places(["../../outside", "mine"]) == ["mine", "../../outside"]


def test_of_thousands_of_methods_the_telling_ones_are_drawn() -> None:
    """The best, the best of each reference, and what no other beats at its cost; the rest is counted in a sentence."""
    names = [f"lora rank={number}" for number in range(299)]
    many = pd.DataFrame(
        {
            "task": "t",
            "method": ["lora"] * 299 + ["head"],
            "configuration": [*names, "head"],
            "metric": "accuracy",
            "score": [0.5 + number / 1000 for number in range(299)] + [0.1],
            "cost.trainable_parameters": [1.0] + [10.0] * 299,
        }
    )
    kept, notes = chosen.telling(many)
    assert set(kept["configuration"]) == {names[0], *names[-plot_scores.MOST_DRAWN :], "head"}
    assert [note.partition(":")[0] for note in notes] == [
        f"Pictures of t show {plot_scores.MOST_DRAWN + 2} of its 300 methods"
    ]
    kept, notes = chosen.telling(many.head(50))
    assert (len(kept), notes) == (50, [])


def contrast(one: str, other: str) -> float:
    """Contrast of two colors (WCAG 2.2)."""
    dark, light = sorted((style.luminance(one), style.luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_color_can_be_seen_on_a_light_and_on_a_dark_page() -> None:
    """With 3:1 or more; black alone is turned white there. The luminances of black and white are 0 and 1."""
    assert (style.luminance("#000000"), style.luminance("#ffffff")) == (0, 1)
    colors = {*style.COLORS, *(color for _, color in CATEGORIES.values())} - {"#000000"}
    many = pd.DataFrame({"task": "t", "method": "lora", "configuration": [f"lora rank={2**n}" for n in range(9)]})
    for color in (*style.COLORS, "of its own"):
        colors |= set(style.shades(many.assign(method=color)))
    assert all(contrast(color, page) >= 3 for color in colors for page in ("#ffffff", "#16181b"))


def test_each_color_that_a_dark_page_changes_can_be_seen_there() -> None:
    """What was drawn on white with 3:1 or more has that on the dark ground too."""
    ground = style.TWINS[style.GROUND]
    for light, dark in style.TWINS.items():
        if light != style.GROUND and contrast(light, style.GROUND) >= 3:
            assert contrast(dark, ground) >= 3, light


def test_a_dark_twin_is_the_same_picture_on_a_dark_ground(drawn: dict[str, dict[str, bytes]]) -> None:
    """Of the same size, no pixel darker than its ground, and as much of it covered; nothing is left white on white."""
    for name, kinds in drawn.items():
        light, dark = (mpl_image.imread(io.BytesIO(kinds[kind]))[..., :3] for kind in ("png", "dark.png"))
        assert light.shape == dark.shape
        assert to_hex(dark[0, 0]) == style.TWINS[style.GROUND], name
        assert to_hex(light[0, 0]) == style.GROUND, name
        assert dark.sum(-1).min() >= dark[0, 0].sum() - 0.05, name
        covered = [(abs(one - one[0, 0]).sum(-1) > 0.5).mean() for one in (light, dark)]
        assert covered[1] == pytest.approx(covered[0], rel=0.25), name
        # Its letters are as light as they are dark on white.
        assert dark.max() > 0.85, name


def over(color: object, alpha: float | None, ground: str) -> str:
    """What is seen of a color that lets its ground shine through."""
    *parts, own = to_rgba(color)  # type: ignore[arg-type]
    share = own if alpha is None else alpha
    return to_hex([share * part + (1 - share) * under for part, under in zip(parts, to_rgb(ground), strict=True)])


def test_every_line_and_mark_of_a_picture_can_be_seen(
    frames: tuple[pd.DataFrame, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 3:1 or more, on the light page and in the dark twin; grids and bands are behind them."""
    made: list[Any] = []
    monkeypatch.setattr(chosen, "files", lambda figure: made.append(figure) or {})
    chosen.draw(*frames)
    assert len(made) == len(ALL)
    for ground in (style.GROUND, style.TWINS[style.GROUND]):
        for figure in made:
            if ground != style.GROUND:
                style.darken(figure)
            grids = {id(line) for axes in figure.axes for line in axes.get_xgridlines() + axes.get_ygridlines()}
            lines = [line for line in figure.findobj(Line2D) if id(line) not in grids and line.get_visible()]
            assert lines
            for line in lines:
                seen = [line.get_color()] if line.get_linestyle() not in ("None", "none") else []
                if line.get_marker() not in ("", "None", None):
                    seen.append(max(
                        (over(one, line.get_alpha(), ground) for one in
                         (line.get_markerfacecolor(), line.get_markeredgecolor())),
                        key=lambda one: contrast(one, ground),
                    ))  # fmt: skip
                assert all(contrast(over(one, line.get_alpha(), ground), ground) >= 3 for one in seen), (line, seen)


def test_configurations_of_one_method_are_shades_of_its_color() -> None:
    """In the order of their sizes, each different; one configuration has the method's own color."""
    names = ["lora rank=16", "lora rank=2", "lora rank=128"]
    rows = [("t", "lora", name) for name in names] + [("t", "full", "full"), ("u", "lora", "lora rank=2")]
    found = style.shades(pd.DataFrame(rows, columns=["task", "method", "configuration"]))
    light = dict(zip(names, map(style.luminance, found), strict=False))
    assert light["lora rank=2"] < light["lora rank=16"] < light["lora rank=128"]
    assert found[3:] == [style.appearance("full")[0], style.appearance("lora")[0]]


def test_a_picture_says_what_it_shows_and_which_way_is_better(drawn: dict[str, dict[str, bytes]]) -> None:
    """Its title has the finding, its axis the direction; its dark twin lies in the same file."""
    text = drawn["score_vs_parameters"]["svg"].decode()
    assert "not beaten at their cost, " in text
    assert "accuracy (validation), higher is better" in text
    assert "prefers-color-scheme: dark" in text
    assert "seeds scatter by" in drawn["seeds"]["svg"].decode()
    assert "Predictions are off by 0% at most" in drawn["predicted_vs_measured"]["svg"].decode()


@pytest.mark.parametrize("name", ["lora", "lora rank=8 learning_rate=0.0005 target_modules=['attention_qv'] a=1"])
def test_a_long_name_takes_nothing_from_what_is_drawn(name: str) -> None:
    """The panel keeps its three inches, and its title and labels end within the picture."""
    runs = [
        {"task": "glue/sst2", "configuration": f"{name} {place}", "metric": "accuracy", "split": "validation"}
        | {"score": 0.8 + place / 50 + seed / 100, "majority": 0.5, "seed": seed}
        for place in range(3)
        for seed in range(3)
    ]
    figure = plot_scores.seed_spread(pd.DataFrame(runs))
    assert figure is not None
    style.settle(figure)
    (panel,) = figure.axes
    box = panel.get_window_extent()
    assert figure.dpi == style.DPI
    assert box.width / figure.dpi > 3
    renderer = figure.canvas.get_renderer()
    edge = figure.bbox.width
    for text in (panel._left_title, *panel.get_yticklabels()):
        extent = text.get_window_extent(renderer)
        assert extent.x0 >= 0
        assert extent.x1 <= edge


def test_a_name_at_the_end_of_a_learning_curve_covers_none() -> None:
    """A curve that is as good as level, whose name is too long for the room behind its end."""
    names = ("full", "head cache_features=true of_another=kind")
    runs = pd.DataFrame(
        {"run_id": names, "task": "glue/stsb", "configuration": names, "method": ("full", "head"), "metric": "spearman"}
    )
    levels = {"full": np.linspace(0.5, 0.85, 20), names[1]: np.linspace(0.4, 0.41, 60)}
    told = [
        {"run_id": name, "name": "spearman", "step": 10 * number, "value": value}
        for name, values in levels.items()
        for number, value in enumerate(values, 1)
    ]
    figure = plot_scores.learning_curves(runs, pd.DataFrame(told))
    assert figure is not None
    (panel,) = figure.axes
    renderer = figure.canvas.get_renderer()
    texts = [text.get_window_extent(renderer) for text in panel.texts]
    assert [text.get_text() for text in panel.texts] == list(names)
    for line in panel.lines:
        for x, y in panel.transData.transform(line.get_xydata()):
            assert not any(box.contains(x, y) for box in texts)
