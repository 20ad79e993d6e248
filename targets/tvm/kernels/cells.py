"""The cells of LSTM, GRU and RNN: what happens in one step, in the formulas and the gate order of ONNX.

In the formulas σ, g and h are the layer's activations f, g and h, ⊙ is the element-wise product, the parts of the
projection that is made in front of the kernel are written x with the gate's letter, and R·h includes R's bias.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.recurrent import Step


def rnn(step: Step) -> None:
    """h ← f(x + R·h)."""
    step.multiply(0, lambda k: step.state("h", k))
    step.for_each(lambda j: step.set_state("h", j, step.activate(0, step.projected(0, j) + step.product(0, 0, j))))


def lstm(step: Step) -> None:
    """i = σ(xᵢ + Rᵢ·h + pᵢ⊙c), f likewise, c ← f⊙c + i⊙g(x_c + R_c·h), o = σ(xₒ + Rₒ·h + pₒ⊙c), h ← o⊙h(c)."""
    _lstm(step, coupled=False)


def lstm_coupled(step: Step) -> None:
    """LSTM with `input_forget`: the forget gate is 1 - i."""
    _lstm(step, coupled=True)


def _lstm(step: Step, *, coupled: bool) -> None:
    i, o, f, c = range(4)  # ONNX's order of the gates; of the peepholes: i, o, f
    step.multiply(0, lambda k: step.state("h", k))

    def gate(which: int, j: Any, cell_state: Any) -> Any:
        x = step.projected(which, j) + step.product(0, which, j)
        if step.layer.has_peepholes:
            x = x + step.peephole(which, j) * cell_state
        return step.activate(0, x)

    def update(j: Any) -> None:
        before = T.Bind(step.state("c", j))
        entering = T.Bind(gate(i, j, before))
        kept = T.float32(1) - entering if coupled else gate(f, j, before)
        candidate = step.activate(1, step.projected(c, j) + step.product(0, c, j))
        after = T.Bind(kept * before + entering * candidate)
        step.set_state("c", j, after)
        step.set_state("h", j, gate(o, j, after) * step.activate_unclipped(2, after))

    step.for_each(update)


def gru(step: Step) -> None:
    """z = σ(x_z + R_z·h), r = σ(x_r + R_r·h), n = g(xₙ + Rₙ·(r⊙h)), h ← (1 - z)⊙n + z⊙h."""
    scratch = step.buffers["scratch"]
    step.multiply(0, lambda k: step.state("h", k))

    def reset(j: Any) -> None:
        T.buffer_store(scratch, _gru_gate(step, 1, j) * step.state("h", j), [j])

    step.for_each(reset)
    step.multiply(1, lambda k: scratch[k])
    step.for_each(lambda j: _gru_update(step, j, step.projected(2, j) + step.product(1, 0, j)))


def gru_linear_before_reset(step: Step) -> None:
    """GRU with n = g(xₙ + r⊙(Rₙ·h)): one product for all gates."""
    step.multiply(0, lambda k: step.state("h", k))

    def update(j: Any) -> None:
        _gru_update(step, j, step.projected(2, j) + _gru_gate(step, 1, j) * step.product(0, 2, j))

    step.for_each(update)


def _gru_gate(step: Step, which: int, j: Any) -> Any:
    return step.activate(0, step.projected(which, j) + step.product(0, which, j))


def _gru_update(step: Step, j: Any, argument: Any) -> None:
    z = T.Bind(_gru_gate(step, 0, j))
    step.set_state("h", j, (T.float32(1) - z) * step.activate(1, argument) + z * step.state("h", j))
