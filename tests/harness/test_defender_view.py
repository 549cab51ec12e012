"""What a defense is given beyond clean images: poisoned ones, a base set, the truth."""

from __future__ import annotations

import json

import pytest
import seeing_defenses
import torch

from bench.cells import CellStore
from bench.data.splits import check_disjoint, permuted_rows
from bench.errors import InputError
from bench.interface import load_scores
from bench.report.export import export
from bench.report.leaderboard import leaderboard, summary
from bench.report.schema import load_results


def white_patches(images):
    patch = images[:, :, 21:31, 21:31].flatten(1)
    return int((patch == 255).all(dim=1).sum())


@pytest.fixture
def run(tiny, warm_session_of, plug_in):
    """Run defenses of ``seeing_defenses`` against BadEncoder."""

    def go(*entries, attacks=("badencoder",), **change):
        names = {"keeps_auxiliary": "KeepsAuxiliary", "keeps_base": "KeepsBase", "scaled": "Scaled"}
        names |= {"keeps_embeddings": "KeepsEmbeddings", "wants_network": "WantsNetwork"}
        names |= {"wants_labels": "WantsLabels", "tells_support": "TellsSupport"}
        names |= {"verdict": "Verdict", "reference": "Reference"}
        plug_in("defenses", **{name: f"seeing_defenses:{of}" for name, of in names.items()})
        tiny["matrix"] = {"attacks": list(attacks), "defenses": list(entries)}
        tiny["profiles"]["tiny"] |= change
        session = warm_session_of(tiny)
        assert session.run().failed == {}
        return session

    return go


def kept(session, role="victim", name="images"):
    fit = session.cells[0].stage.inputs[role].inputs["fit"]
    return session.workspace().tensors(fit, "state.safetensors")[name]


def test_embeddings_have_one_length_in_fit_and_score_and_the_row_says_so(run):
    told, lengths = {}, {}
    for said in (None, True):
        entry = {"defense": "keeps-embeddings"} | ({"equal_length": True} if said else {})
        session = run(entry)
        [cell] = load_results(session.results).cells
        assert cell.config["defense"].get("equal_length") is said
        told[said], lengths[said] = kept(session), cell.scores()["score"].to_numpy()
    plain, length = told[None], told[None].shape[1] ** 0.5
    torch.testing.assert_close(told[True], plain / plain.norm(dim=1, keepdim=True) * length)
    assert lengths[None].std() > 0.01
    assert lengths[True] == pytest.approx(length)


def test_one_length_is_refused_where_the_network_itself_is_taken(run):
    with pytest.raises(InputError, match="equal_length: wants-network-equal-length takes the net"):
        run({"defense": "wants-network", "equal_length": True})


def test_one_length_is_refused_for_a_reference(run):
    with pytest.raises(InputError, match="reference-equal-length never calls the encoder"):
        run({"defense": "reference", "equal_length": True})


def test_poisoned_auxiliary_holds_its_rate_of_triggered_images_and_so_does_the_placebos(run):
    entry = {"defense": "keeps-auxiliary", "auxiliary_poison_rate": 0.2}
    session = run(entry)
    images, frame = kept(session), leaderboard(load_results(session.results))
    assert frame["auxiliary"].tolist() == ["in-distribution, 20 % triggered"]
    clean = kept(run({"defense": "keeps-auxiliary"}))
    # 20 of 100, of which the first ten are held out for the threshold.
    assert 12 <= white_patches(images) <= 20
    assert white_patches(clean) == 0
    changed = (images != clean).flatten(1).any(dim=1)
    assert int(changed.sum()) == white_patches(images)
    assert torch.equal(images, kept(session, "twin"))


def test_poisoned_auxiliary_of_another_distribution(run):
    entry = {
        "defense": "keeps-auxiliary",
        "auxiliary": "out-of-distribution",
        "auxiliary_poison_rate": 0.1,
    }
    assert white_patches(kept(run(entry))) >= 5


def test_base_set_is_clean_and_of_its_own_role(run):
    session = run("keeps-base")
    fit = session.cells[0].stage.inputs["victim"].inputs["fit"]
    rows = permuted_rows(1397, fit.spec["base"]["rows"], "digits")
    train = session.workspace().images(fit.inputs["train"])
    assert torch.equal(kept(session), train.select(rows).uint8())
    others = {
        role: permuted_rows(1397, fit.spec[role]["rows"], "digits")
        for role in ("suspicious", "auxiliary")
    }
    check_disjoint({"base": rows, **others})


def test_labels_come_to_who_requires_them_and_a_set_without_labels_skips_the_cell(run):
    outside = {"defense": "wants-labels", "label": "outside", "auxiliary": "out-of-distribution"}
    session = run("wants-labels", outside)
    frame = leaderboard(load_results(session.results)).set_index("defense")
    assert frame.loc["wants-labels", "status"] != "skipped"
    assert frame.loc["outside", "status"] == "skipped"
    assert frame.loc["outside", "reason"] == (
        "wants-labels requires labels of the auxiliary images, and photographs has none"
    )


def test_pool_of_no_images_skips_the_cell_with_the_reason(run, tiny):
    splits = {**tiny["profiles"]["tiny"]["splits"], "base": 0}
    session = run("keeps-base", splits=splits)
    frame = leaderboard(load_results(session.results))
    assert frame["reason"].tolist() == ["keeps-base requires base images, and splits.base is 0"]


def test_entries_that_differ_in_scoring_parameters_share_one_fit(run):
    seeing_defenses.FITS.clear()
    double = {"defense": "scaled", "label": "double", "parameters": {"factor": 2.0}}
    raised = {"defense": "scaled", "label": "raised", "parameters": {"level": 1.0}}
    session = run("scaled", double, raised)
    # Victim and twin, for the level at 0 and at 1.
    assert len(seeing_defenses.FITS) == 4
    single, twice, lifted = (
        load_scores(CellStore(session.results).folder / cell.key)["score"].to_numpy()
        for cell in session.cells
    )
    assert twice == pytest.approx(2 * single)
    assert lifted == pytest.approx(single + 1)
    fits = {cell.stage.inputs["victim"].inputs["fit"].key for cell in session.cells}
    assert len(fits) == 2


def test_analysis_is_told_the_support_and_stays_out_of_averages(run):
    session = run("tells-support", "scaled")
    results = load_results(session.results)
    frame = leaderboard(results).set_index("defense")
    assert frame["analysis"].to_dict() == {"scaled": False, "tells-support": True}
    assert summary(results)["defense"].tolist() == ["scaled"]
    assert "tells-support §" in export(session.results, "markdown")
    note = "§ analysis: a control, or told where the trigger lies"
    assert note in export(session.results, "markdown")
    assert r"\S{} analysis" in export(session.results, "latex")
    scores = load_scores(CellStore(session.results).folder / session.cells[0].key)
    triggered = scores[(scores["condition"] == "triggered") & (scores["encoder"] == "victim")]
    assert triggered["score"].to_numpy() == pytest.approx(1.0)


def test_dede_outside_the_trigger_shares_the_fit_and_leaves_the_patch_out(tiny, warm_session_of):
    outside = {
        "defense": "dede",
        "label": "dede-outside",
        "parameters": {"score_region": "outside-trigger"},
    }
    tiny["matrix"] = {"attacks": ["none"], "defenses": ["dede", outside]}
    session = warm_session_of(tiny)
    outcome = session.run()
    assert outcome.failed == {}
    assert sum(label.startswith("fit") for label in outcome.computed) == 1
    everywhere, out = (
        load_scores(CellStore(session.results).folder / cell.key)["score"].to_numpy()
        for cell in session.cells
    )
    assert (out < everywhere).all()
    flags = [
        json.loads((CellStore(session.results).folder / cell.key / "cell.json").read_text())
        for cell in session.cells
    ]
    assert [flag["analysis"] for flag in flags] == [False, True]


def test_verdicts_follow_from_score_and_threshold(run):
    high = {"defense": "verdict", "label": "high", "parameters": {"threshold": 0.8}}
    session = run("verdict", high, "scaled")
    frame = leaderboard(load_results(session.results)).set_index("defense")
    assert frame.loc["verdict", "encoder_verdict"] == "backdoored"
    assert frame.loc["high", "encoder_verdict_twin"] == "clean"
    assert frame.loc["scaled", "encoder_verdict"] == ""
    assert frame.loc["verdict", "encoder_score"] == 0.75
    assert "backdoored/backdoored" in export(session.results, "markdown")


def test_reference_is_shown_last_whatever_it_scores(run):
    worse = {"defense": "scaled", "label": "worse", "parameters": {"factor": 0.5}}
    session = run("reference", "scaled", worse, attacks=("badencoder", "none"))
    results = load_results(session.results)
    frame = leaderboard(results)
    for _, rows in frame.groupby("attack", sort=False):
        assert rows["defense"].iloc[-1] == "reference"
    assert summary(results)["defense"].iloc[-1] == "reference"
    assert "reference ‡" in export(session.results, "markdown")


@pytest.mark.parametrize(
    ("entry", "protocol", "key", "message"),
    [
        (
            {"defense": "dede", "auxiliary_poison_rate": 0.001},
            {},
            "auxiliary_poison_rate",
            "0.001 of 100 auxiliary images is none",
        ),
        (
            "spectral-signatures",
            {"poison_rate": 0.001},
            "protocol.poison_rate",
            "0.001 of the 100 images of the suspicious pool is none",
        ),
    ],
)
def test_share_that_comes_to_no_image_is_an_error_of_the_file(
    tiny, warm_session_of, entry, protocol, key, message
):
    tiny["matrix"] = {"attacks": ["badencoder"], "defenses": [entry]}
    tiny["protocol"] |= protocol
    session = warm_session_of(tiny)
    with pytest.raises(InputError, match=message) as error:
        session.run()
    assert key in str(error.value)
    assert not session.results.exists()


def test_held_out_images_of_a_poisoned_set_are_not_called_clean(run):
    session = run({"defense": "keeps-auxiliary", "auxiliary_poison_rate": 0.2}, "scaled")
    kinds = [
        set(scores.loc[scores["split"] == "auxiliary", "condition"])
        for cell in session.cells
        for scores in [load_scores(CellStore(session.results).folder / cell.key)]
    ]
    assert kinds == [{"owned"}, {"clean"}]
