"""Train the 3D U-Net to segment brain tumours, and judge it on cases it has not seen.

python examples/train_3d.py
    makes phantom cases and trains on them: full size on a CUDA GPU, small without one
python examples/train_3d.py --data Task01_BrainTumour
    the reference configuration on the Medical Segmentation Decathlon's task
"""

import sys

from minibrain.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", "--network", "brain_3d", *sys.argv[1:]]))
