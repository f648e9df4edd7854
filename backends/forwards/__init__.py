"""Forwards that remember what they were fed, and the parts they are made of."""
