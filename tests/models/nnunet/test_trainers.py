"""Every trainer of nnU-Net 2.8.1, by whether it overrides the building of the planned network."""

from __future__ import annotations

import pytest

from medkd.models.nnunet.trainers import keeps_network, mirrored_axes

# nnUNetTrainerBN builds its own, too, but only puts batch norms into the planned one
KEEP = """
nnUNetTrainer nnUNetTrainerAdam nnUNetTrainerAdam1en3 nnUNetTrainerAdam3en4 nnUNetTrainerAdan nnUNetTrainerAdan1en1
nnUNetTrainerAdan1en3 nnUNetTrainerAdan3en4 nnUNetTrainerAdanCosAnneal nnUNetTrainerBN nnUNetTrainerBenchmark_5epochs
nnUNetTrainerBenchmark_5epochs_noDataLoading nnUNetTrainerCELoss nnUNetTrainerCELoss_5epochs nnUNetTrainerCosAnneal
nnUNetTrainerDA5 nnUNetTrainerDA5Segord0 nnUNetTrainerDA5_10epochs nnUNetTrainerDA5ord0
nnUNetTrainerDiceCELoss_noSmooth nnUNetTrainerDiceLoss nnUNetTrainerDiceTopK10Loss nnUNetTrainerNoDA
nnUNetTrainerNoDeepSupervision nnUNetTrainerNoMirroring nnUNetTrainerTopk10Loss nnUNetTrainerTopk10LossLS01
nnUNetTrainerVanillaAdam nnUNetTrainerVanillaAdam1en3 nnUNetTrainerVanillaAdam3en4 nnUNetTrainer_100epochs
nnUNetTrainer_10epochs nnUNetTrainer_1epoch nnUNetTrainer_2000epochs nnUNetTrainer_2000epochs_NoMirroring
nnUNetTrainer_20epochs nnUNetTrainer_250epochs nnUNetTrainer_250epochs_NoMirroring nnUNetTrainer_4000epochs
nnUNetTrainer_4000epochs_NoMirroring nnUNetTrainer_500epochs nnUNetTrainer_50epochs nnUNetTrainer_5epochs
nnUNetTrainer_750epochs nnUNetTrainer_8000epochs nnUNetTrainer_8000epochs_NoMirroring nnUNetTrainer_DASegOrd0
nnUNetTrainer_DASegOrd0_NoMirroring nnUNetTrainer_noDummy2DDA nnUNetTrainer_onlyMirror01
nnUNetTrainer_onlyMirror01_1500ep nnUNetTrainer_onlyMirror01_DA5 nnUNetTrainer_onlyMirror01_DASegOrd0
nnUNetTrainer_probabilisticOversampling nnUNetTrainer_probabilisticOversampling_010
nnUNetTrainer_probabilisticOversampling_033 nnUNetTrainer_warmup nnUNet_Trainer_BS8
"""
OWN = """
AbstractPrimus _Primus_B_96_BS1 _Primus_L_48_BS1 _Primus_M_96_BS1 _Primus_S_96_BS1 nnUNet_PrimusV2B_Trainer
nnUNet_PrimusV2L_Trainer nnUNet_PrimusV2M_Trainer nnUNet_PrimusV2S_Trainer nnUNet_PrimusV3B_Trainer
nnUNet_PrimusV3L_Trainer nnUNet_PrimusV3M_Trainer nnUNet_PrimusV3S_Trainer nnUNet_Primus_B_Trainer
nnUNet_Primus_L_Trainer nnUNet_Primus_M_Trainer nnUNet_Primus_M_Trainer_BS8 nnUNet_Primus_M_Trainer_BS8_2e4
nnUNet_Primus_S_Trainer
"""
# of forks and users
OTHERS = [
    "nnUNetTrainer_250epochs_MedNeXt",
    "nnUNetTrainerUMambaEnc",
    "nnUNetTrainerMedNeXtL_kernel3",
    "nnUNetTrainerBN_Own",
    "Trainer",
    "None",
    "",
]


@pytest.mark.parametrize(
    "name",
    [
        *KEEP.split(),
        "nnUNetTrainer_DASegOrd0_NoMirroring_2000epochs",
        "nnUNetTrainerNoDA_500epochs",
        "nnUNetTrainer_MOSAIC_1k_QuarterLR_NoMirroring",
        "nnUNetTrainer_1500epochs_NoMirroring",
        "nnUNetTrainerFocalLoss_30epochs",
        "nnUNetTrainer_lr1e4_NoMirroring",
    ],
)
def test_trainers_that_keep_the_planned_network_are_accepted(name: str) -> None:
    assert keeps_network(name)


@pytest.mark.parametrize("name", [*OWN.split(), *OTHERS])
def test_trainers_with_a_network_of_their_own_are_refused(name: str) -> None:
    assert not keeps_network(name)


def _nomirror(name: str) -> bool:
    return name.endswith("NoMirroring") or "NoDA" in name


@pytest.mark.parametrize("name", KEEP.split())
@pytest.mark.parametrize("rank", [2, 3])
def test_the_name_says_what_is_mirrored_where_the_checkpoint_does_not(name: str, rank: int) -> None:
    if _nomirror(name):
        expected: tuple[int, ...] = ()
    elif "onlyMirror01" in name:
        expected = (0, 1) if rank == 3 else (0,)
    else:
        expected = (0, 1, 2)[:rank]
    assert mirrored_axes(name, rank) == expected
