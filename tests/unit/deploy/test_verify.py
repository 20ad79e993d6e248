"""`verify` runs the real library and finds a difference where there is one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from graphopt.analysis.samples import Samples, probe_samples
from graphopt.deploy import Bundle
from graphopt.deploy.verify import verify
from graphopt.errors import DataError, InternalError, ToleranceError, UsageError
from tests.targets.toy import TARGETS
from tests.unit.deploy.toy_bundle import SUM, make_bundle, toy_model

HOST = TARGETS["host"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy.host")


def test_a_right_library_passes(bundle: Bundle) -> None:
    result = verify(bundle, HOST, count=3, threads=2)
    assert (result.passed, result.samples, result.command) == (True, 3, ())
    assert result.reference == "bundle's model.onnx"
    assert [output.name for output in result.outputs] == [SUM, "scaled", "n_out", "constant"]
    assert all(output.relative == 0 for output in result.outputs)


def test_every_sample_is_run(bundle: Bundle) -> None:
    steps = []
    samples = probe_samples(toy_model(), 1, 5)
    result = verify(bundle, HOST, samples=samples, progress=lambda done, total, what: steps.append((done, total, what)))
    assert result.samples == 5
    assert [done for done, _, what in steps if what == "run the bundle"] == [0, 1, 2, 3, 4]


def test_a_wrong_library_is_caught(tmp_path: Path) -> None:
    """The model's third factor is 3.1, the library's 3."""
    wrong = make_bundle(tmp_path / "toy.host", factors=(1, 2, 3.1, 4))
    with pytest.raises(ToleranceError, match=r"differs from the bundle's model.onnx by .* allowed is 0.0001") as caught:
        verify(wrong, HOST)
    assert "scaled: max error" in str(caught.value) and "SQNR" in str(caught.value)
    assert verify(wrong, HOST, tolerance=0.1).passed


def test_the_original_may_be_given(bundle: Bundle) -> None:
    assert verify(bundle, HOST, original=toy_model(), count=1).reference == "original model"


def test_another_model_is_refused_by_its_fingerprint(bundle: Bundle) -> None:
    with pytest.raises(DataError, match=r"the model's fingerprint is .*was made from"):
        verify(bundle, HOST, original=toy_model((1, 2, 3, 5)), count=1)


def test_samples_of_another_shape_are_refused(bundle: Bundle) -> None:
    samples = probe_samples(toy_model(), 0, 1)
    arrays = {name: array[None] for name, array in samples[0].items()}
    odd = Samples({**arrays, "y": arrays["y"][:, :23]}, dict.fromkeys(arrays, 0))
    with pytest.raises(DataError, match=r"input 'y' has shape \[23\], the bundle takes \[24\]"):
        verify(bundle, HOST, samples=odd)


def test_a_program_that_fails_is_an_error_with_its_message(bundle: Bundle) -> None:
    samples = probe_samples(toy_model(), 0, 1)
    arrays = {name: array[None] for name, array in samples[0].items()}
    large = Samples({**arrays, "x": arrays["x"] + 5000}, dict.fromkeys(arrays, 0))
    with pytest.raises(InternalError, match=r"(?s)failed with status 1.*a value is too large"):
        verify(bundle, HOST, samples=large)


def test_a_missing_emulator_is_named_with_its_package(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"(?s)needs the emulator qemu-arm.*apt install qemu-user"):
        verify(bundle, TARGETS["armv7"])


def test_a_target_that_cannot_run_here_is_refused(bundle: Bundle) -> None:
    foreign = dataclasses.replace(HOST, triple="riscv64-linux-gnu", emulator=())
    with pytest.raises(UsageError, match="cannot run on this machine"):
        verify(bundle, foreign)


@pytest.mark.emulation
@pytest.mark.parametrize("target", ["cortex-a76", "armv7"])
def test_arm_libraries_run_emulated(target: str, tmp_path: Path) -> None:
    result = verify(make_bundle(tmp_path / "toy.arm", target), TARGETS[target], count=2)
    assert result.passed and result.command[0].startswith("qemu-")
