"""Train the 2D U-Net on axial slices of two modalities, and judge it on whole cases.

python examples/train_2d.py
    makes phantom cases and trains on them: full size on a CUDA GPU, small without one
python examples/train_2d.py --data Task01_BrainTumour
    the reference configuration on the Medical Segmentation Decathlon's task
"""

import sys

from minibrain.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", "--network", "brain_2d", *sys.argv[1:]]))
