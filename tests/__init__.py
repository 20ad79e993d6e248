"""Tests of graphopt. A package, so that files of the same name may stand in different folders."""
