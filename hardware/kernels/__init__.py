"""The few loops that are written in C, how they are built, and memory that is used again and again around them.

Without a C compiler whoever calls them computes the same numbers in NumPy or torch.
"""
