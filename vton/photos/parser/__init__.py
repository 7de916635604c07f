"""The parser that comes with the package: labels, body parts and joints from one small network.

    network    the network, its file, and what it says of a picture
    rendered   the pictures it learns from, drawn by the project's renderer
    varied     how they are varied, so that real photographs are no surprise
    training   the training itself: seed, steps and digest

It is made for rendered pictures and simple studio photographs.
"""
