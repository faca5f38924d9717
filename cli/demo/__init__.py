"""`segmap demo`: the whole system at work on one machine, and every promise checked while one watches."""
