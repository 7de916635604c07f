"""Data: folders on disk in, `TryOnSample` out. `module.TryOnDataModule` is the only door.

sample      TryOnSample and TryOnBatch, the contract with the models; DataError
source      where a data set lies: a plain folder or shards
shards      the shard format, its reader and its writer; packing writes a folder into shards
folder      what data sets share: pair lists, and where each file of a pair lies
viton_hd    VITON-HD's layout
dresscode   DressCode's layout
images, pose, densepose, captions     decoding one kind of file each
labels      one numbering of parse labels for all data sets
derived/    what is computed where a data set has no file for it: masks, warped garments
record      a decoded pair before normalisation
dataset     records and samples of one split in one order
augmentation, transforms     random changes of a record; record to sample
encoded     readings of frozen encoders, computed ahead
stream      in which order samples are drawn
loading     how loader processes treat signals
module      the data module
check       every bad or missing file of a folder
boxes       bounding boxes of masks
synthetic/  renders complete data sets
"""
