"""Photographs of one's own: from raw pictures of persons and garments to what a data set holds.

prepare     persons and garments to a complete folder in an official layout
person      one photograph of a person: found, framed, parsed, masked, and what is wrong with it
garment     one photograph of a garment: its silhouette, and the garment on white
backends    networks by name, behind one small interface each
parser      the small network that comes with the package, and its training
"""
