"""`segmap doctor`: is this machine fit for what is asked of it, and if not, what to do.

`facts` reads the machine, `needs` a configuration, `checks` compares the two and touches neither.
"""
