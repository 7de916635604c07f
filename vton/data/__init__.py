"""Data: folders on disk in, `TryOnSample` out. `module.TryOnDataModule` is the only door.

Which file does what, in the order in which data flows:

    source          where a data set lies: in a plain folder or in shards
    shards          the shard format, its reader and its writer; packing fills it from a folder
    pairs           pair lists, the choice of pairs, exchanged garments
    folder          where each file of a pair lies, and how it is decoded
    viton_hd, dresscode                 the layouts of both data sets
    images, pose, densepose, captions   decoding one kind of file each
    labels          one numbering of parse labels for all data sets
    derived/        what is computed where a data set has no file: masks, warped garments
    record          a decoded pair before normalisation
    augmentation    random changes of a record
    transforms      size, padding, normalisation: a record becomes a sample
    sample          TryOnSample and TryOnBatch, the contract with the models; DataError
    dataset         records and samples of one split in one order
    encoded         readings of frozen encoders, computed ahead
    stream          the order in which samples are drawn
    loading         signals of loader processes
    module          the data module
    check           names every bad or missing file of a folder
    boxes           bounding boxes of masks
    synthetic/      renders complete data sets
"""
