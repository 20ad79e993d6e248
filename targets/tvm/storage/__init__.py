"""Weights stored compressed in the library: `rans` codes bytes, `coding` chooses a code, `compression` edits a program.

runtime/decode.h is the decoder. docs/adr/0010-storage-compression.md says why it is as it is.
"""
