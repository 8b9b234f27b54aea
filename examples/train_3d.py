"""Train the 3D U-Net to segment brain tumours, and judge it on cases it has not seen.

python examples/train_3d.py
    makes phantom cases and trains on them: full size on a CUDA GPU, small without one
python examples/train_3d.py --data Task01_BrainTumour
    the reference configuration on the Medical Segmentation Decathlon's task
"""

from minibrain import cli, experiment

if __name__ == "__main__":
    cli.train(__doc__, reference=experiment.REFERENCE_3D, small=experiment.SMALL_3D)
