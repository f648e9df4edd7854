"""Error rates of the method before and after a mend, from simulations whose truth is known.

Each module simulates one fault, judges it by today's functions and by a short twin of the old rule, and offers `rows`.
"""
