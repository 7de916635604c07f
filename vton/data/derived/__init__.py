"""What is computed where a data set has no file for it: agnostic masks and warped garments.

agnostic           `agnostic_mask`, by the rules that the project names and by its own
published_masks    the rules of papers and their repositories
shapes             what mask rules draw with: a skeleton on a canvas, and morphology
warp               sources of warped garments by name: `warp_source`
geometric          the geometric warp of an in-shop garment onto a person
figure             the body that a garment is put on, completed from its joints
silhouette         landmarks of the in-shop garment, read from its outline
strip              centre line and width of a sleeve or leg, which `silhouette` reads
upright            the outline turned upright and cut at its axis, which `silhouette` reads
tps                thin-plate splines, and drawing parts of a garment through them
"""
