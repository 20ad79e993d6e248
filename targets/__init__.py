"""Target descriptions and backends. Import them as `graphopt.targets`: the folder at the top is the same one."""

if __name__ != "graphopt.targets":
    raise ImportError(f"import graphopt.targets, not {__name__}")
