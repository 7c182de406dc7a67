"""The record every runner fills, where it comes from, and what is read off it: edges, firing, profiles."""
