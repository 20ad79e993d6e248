"""The CMake package of a bundle, so that `find_package(NAME)` gives NAME::NAME wherever the bundle lies."""

from __future__ import annotations

from graphopt.deploy.header import ABI, environment
from graphopt.deploy.toolchain import is_mach_o
from graphopt.targets.base import Library, TargetDescription


def render_cmake(name: str, library: Library, target: TargetDescription) -> dict[str, str]:
    """The files of lib/cmake/NAME, by name."""
    fields = {
        "name": name,
        "abi": ABI,
        "static": library.static.name,
        "shared": library.shared.name,
        "mach_o": is_mach_o(target),
        "pointer_bits": target.pointer_bits,
    }
    templates = environment()
    return {
        f"{name}{part}.cmake": templates.get_template(f"{part}.cmake.jinja").render(fields)
        for part in ("Config", "ConfigVersion")
    }
