"""What is computed where a data set has no file for it: agnostic masks and warped garments.

Masks:

    agnostic           `agnostic_mask`: the rules by name, and the project's own
    published_masks    the rules of papers and their repositories
    automask           CatVTON's rule from DensePose and two parsers
    shapes             what rules draw with: a skeleton on a canvas, and morphology

Warped garments:

    warp               `warp_source`: sources by name
    geometric          the geometric warp of an in-shop garment onto a person
    figure             the body that a garment is put on, completed from its joints
    silhouette         landmarks of the in-shop garment, read from its outline
    strip              centre line and width of a sleeve or leg
    upright            the outline turned upright and cut at its axis of symmetry
    tps                thin-plate splines, and drawing parts of a garment through them
"""
