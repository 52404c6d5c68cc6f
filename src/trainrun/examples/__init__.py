"""Two tasks that train on real data: `digits` (a module of functions) and `chargpt` (a class)."""
