"""The commands `specheat distill` and `specheat kd-matrix`, and the program that makes the pair mini-t5."""
