"""Train the 2D U-Net on axial slices of two modalities, and judge it on whole cases.

python examples/train_2d.py
    makes phantom cases and trains on them: full size on a CUDA GPU, small without one
python examples/train_2d.py --data Task01_BrainTumour
    the reference configuration on the Medical Segmentation Decathlon's task
"""

from minibrain import cli, experiment

if __name__ == "__main__":
    cli.train(__doc__, reference=experiment.REFERENCE_2D, small=experiment.SMALL_2D)
