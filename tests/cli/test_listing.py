"""``stepscale list`` names every file of every group, with a line that says what it is."""

import pytest

from stepscale.bench.cli import listing
from stepscale.bench.errors import UsageError


def test_every_file_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    listing.main([])
    printed = capsys.readouterr().out.splitlines()
    for group in listing.GROUPS:
        for path in (listing.CONF / group).rglob("*.yaml"):
            name = path.relative_to(listing.CONF / group).with_suffix("")
            (line, *_) = (line for line in printed if line.split()[:1] == [str(name)])
            assert len(line.split()) >= 3, f"{group}/{path.name} says nothing of itself"


def test_optimizers_stand_under_the_package_of_their_method() -> None:
    packages, package = {}, ""
    for line in list(listing.lines("optimizer"))[1:]:
        package = package if line.startswith("    ") else line.strip()
        packages[line.split()[0]] = package
    assert packages["kfac"] == packages["foof"] == "stepscale.optimizers.kronecker"
    assert packages["relative_fused"] == "stepscale.optimizers.relative"
    assert packages["adam"] == "stepscale.optimizers.exact"


def test_other_packages_optimizers_stand_last() -> None:
    lines = list(listing.lines("optimizer"))
    first = lines.index("  pytorch_optimizer")
    assert [line.strip() for line in lines[first:] if not line.startswith("    ")] == [
        "pytorch_optimizer", "schedulefree", "singd", "torch",
    ]  # fmt: skip
    assert not any("library/" in line for line in lines[:first])
    assert any("library/muon" in line and "Muon + AdamW: five Newton–Schulz" in line for line in lines[first:])


def test_a_line_says_method_update_and_cost() -> None:
    lines = {line.split()[0]: line for line in listing.lines("optimizer")}
    assert "Layerwise, SGD with momentum. O(L (B d² + d³))" in lines["sgd_momentum"]
    assert "QuadraticStep, its own update." in lines["kfac_whole"]


def test_a_comment_at_the_start_says_what_a_file_is() -> None:
    assert listing.leading_comment("# one\n# two; and more\ntask: time\n# three\n") == "one two"
    assert listing.leading_comment("# @package _global_\nframe: euclidean\n") == ""
    lines = {line.split()[0]: line for line in listing.lines("data")}
    assert lines["noise"].endswith("Laplace sources, not mixed")
    assert "Laplace sources through depth random" in lines["mixture"]


def test_a_group_alone(capsys: pytest.CaptureFixture[str]) -> None:
    listing.main(["model"])
    assert capsys.readouterr().out.splitlines()[0] == "model=NAME"
    with pytest.raises(UsageError, match="there is no group 'optimiser'; choose one of optimizer, model, data, sweep"):
        listing.main(["optimiser"])
