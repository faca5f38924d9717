"""The decisions of the controller: pure, driven by `machine.Controller.step`; clock, ids and state are given in."""
