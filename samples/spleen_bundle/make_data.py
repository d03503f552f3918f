"""Write the synthetic abdominal CT data set that the sample bundle trains on.

Every case is one torso phantom: a body ellipse with a fat layer, spine, ribs and lung bases in
air, and a liver, a stomach and a spleen inside. The spleen is label 1, everything else 0. Spleen
and liver have almost the same brightness, as in real CT, so a network must learn the place and the
shape of the spleen and cannot just threshold. The volumes are int16 NIfTI files in Hounsfield
units, in the folder layout of the Medical Segmentation Decathlon (imagesTr, labelsTr).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Vector = Sequence[float] | NDArray[np.float64]

# The field of view is fixed and the voxel size follows from it, so that --size changes the
# resolution and never cuts the anatomy.
FIELD_OF_VIEW_MM = np.array([320.0, 320.0, 288.0])
RECIPE_FILE = "recipe.json"
RECIPE_VERSION = 1

AIR, LUNG, FAT, SOFT_TISSUE, STOMACH = -1000, -820, -95, 45, 15
LIVER, SPLEEN, BONE, MARROW = 105, 118, 650, 260
NOISE_HU = 18.0


def grid_mm(size: Sequence[int], spacing: NDArray[np.float64]) -> list[FloatArray]:
    """Return the coordinates of the voxel centres in mm around the middle (x left, y back)."""
    axes = [
        ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
        for n, step in zip(size, spacing, strict=True)
    ]
    return list(np.meshgrid(*axes, indexing="ij"))


def ellipsoid(grid: list[FloatArray], centre: Vector, radii: Vector) -> FloatArray:
    """Return a field that is below 1 inside the ellipsoid and grows outwards."""
    squares = [((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)]
    return np.sqrt(np.sum(squares, axis=0, dtype=np.float32))


def blob(
    grid: list[FloatArray], centre: Vector, radii: Vector, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw an ellipsoid with a waved surface, so that no two cases have the same organ shape."""
    wave = np.zeros_like(grid[0])
    for g in grid:
        wavelength, phase = rng.uniform(70, 120), rng.uniform(0, 2 * np.pi)
        wave += np.sin(2 * np.pi * g / wavelength + phase).astype(np.float32)
    return ellipsoid(grid, centre, radii) < 1 + 0.07 * wave


def make_case(
    size: Sequence[int], rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """Draw one phantom: the image, the label and the affine."""
    spacing = FIELD_OF_VIEW_MM / np.asarray(size) * rng.uniform(0.94, 1.06, size=3)
    grid = grid_mm(size, spacing)
    x, y, z = grid

    def near(*place: float) -> NDArray[np.float64]:
        return np.asarray(place) + rng.uniform(-8, 8, size=3)

    width, depth = rng.uniform(132, 145), rng.uniform(96, 108)
    skin = ellipsoid(grid[:2], (0, 0), (width, depth))
    wall = ellipsoid(grid[:2], (0, 0), (width - 18, depth - 16))
    # Ribs slope downwards to the front, which makes them cross the axial slices as spots.
    rib_rows = np.mod(z - 0.35 * y + rng.uniform(0, 34), 34) < 9

    image = np.full(x.shape, AIR, dtype=np.float32)
    image[skin < 1] = FAT
    image[wall < 1] = SOFT_TISSUE
    image[(wall > 0.93) & (wall < 1.02) & rib_rows & (np.abs(x) > 25)] = BONE
    for side in (-1, 1):
        lung = ellipsoid(grid, near(side * 62, 0, 150), (52, 72, 85))
        image[(lung < 1) & (wall < 0.9)] = LUNG
    spine = ellipsoid(grid[:2], (0, 0.62 * depth), (23, 19))
    image[spine < 1] = BONE
    image[spine < 0.78] = MARROW
    image[blob(grid, near(25, -42, 30), (34, 28, 42), rng)] = STOMACH
    image[blob(grid, near(-52, -8, 8), (58, 62, 66), rng) & (wall < 0.9)] = LIVER
    spleen = blob(grid, near(72, 34, 18), np.array([25, 34, 48]) * rng.uniform(0.9, 1.1), rng)
    spleen &= wall < 0.9
    image[spleen] = SPLEEN

    image += rng.normal(0, NOISE_HU, size=x.shape).astype(np.float32)
    image = np.clip(np.round(image), -1024, 3071)

    # Scanners write patient left and back first (LPS) while NIfTI counts to the right and the
    # front (RAS): the signs give Orientationd, and the origin off zero the affine, work to do.
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = rng.uniform(-60, 60, size=3)
    return image.astype(np.int16), spleen.astype(np.uint8), affine


def save(path: Path, volume: NDArray[np.int16] | NDArray[np.uint8], affine: Vector) -> None:
    """Write one volume in mm, with the affine as scanner coordinates."""
    nifti: Any = nib.Nifti1Image(volume, affine)
    nifti.header.set_xyzt_units("mm")
    nib.save(nifti, path)


def make_data(output_dir: Path, cases: int, size: Sequence[int], seed: int, force: bool) -> bool:
    """Write the data set; return False if the very same one is already there."""
    recipe = {"version": RECIPE_VERSION, "cases": cases, "size": list(size), "seed": seed}
    recipe_file = output_dir / RECIPE_FILE
    if not force and recipe_file.exists() and json.loads(recipe_file.read_text()) == recipe:
        return False

    image_dir, label_dir = output_dir / "imagesTr", output_dir / "labelsTr"
    if not recipe_file.exists() and (image_dir.exists() or label_dir.exists()):
        # A real data set has the same layout, and must not be wiped by a wrong path.
        raise FileExistsError(f"{output_dir} holds a data set that this script did not write")
    # Old volumes have to go because the bundle takes every file that it finds. The recipe stays
    # incomplete until the end, so that an interrupted run never passes for a finished one.
    output_dir.mkdir(parents=True, exist_ok=True)
    recipe_file.write_text("{}\n")
    for folder in (image_dir, label_dir):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    digits = len(str(cases))
    for case in range(1, cases + 1):
        # One generator per case: more cases later leave the first ones as they are.
        image, label, affine = make_case(size, np.random.default_rng([seed, case]))
        name = f"spleen_{case:0{digits}d}.nii.gz"
        save(image_dir / name, image, affine)
        save(label_dir / name, label, affine)
    recipe_file.write_text(json.dumps(recipe) + "\n")
    return True


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(
        description="Write a small synthetic CT data set with spleen labels (NIfTI, int16, HU).",
        epilog="The same options always give the same volumes. Nothing is written again when "
        "the output folder already holds them.",
    )
    parser.add_argument(
        "output_dir",
        nargs="?",
        type=Path,
        default=Path(__file__).resolve().parent / "data",
        help="folder for imagesTr and labelsTr, whose old content is replaced "
        "(default: the folder data next to this file)",
    )
    parser.add_argument(
        "--cases",
        type=int,
        default=10,
        help="number of volumes; the bundle validates on the last two (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        default=[96, 96, 72],
        metavar=("X", "Y", "Z"),
        help="voxels along each axis; more voxels mean finer ones (default: 96 96 72)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all randomness (default: %(default)s)"
    )
    parser.add_argument(
        "--force", action="store_true", help="write the files even if the same ones are there"
    )
    args = parser.parse_args()
    if args.cases < 1 or min(args.size) < 8 or args.seed < 0:
        parser.error("--cases must be at least 1, every --size at least 8, --seed not negative")

    try:
        written = make_data(args.output_dir, args.cases, args.size, args.seed, args.force)
    except FileExistsError as error:
        parser.error(str(error))
    if written:
        print(f"Wrote {args.cases} cases to {args.output_dir}")
    else:
        print(f"The same {args.cases} cases are already in {args.output_dir}; nothing to do")


if __name__ == "__main__":
    main()
