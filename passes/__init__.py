"""The built-in passes. Import them as `graphopt.passes`: the folder at the top of the repository is the same one."""

if __name__ != "graphopt.passes":
    raise ImportError(f"import graphopt.passes, not {__name__}")
