"""Rows become tokens: read, render, encode, split, order. Each step is one file, and none of them guesses silently."""
