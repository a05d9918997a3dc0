import torch
from transformers import DFineConfig
from transformers.loss.loss_d_fine import DFineLoss

from detframe.models.heads.detr import Prediction, Supervision
from detframe.models.heads.dfine import DFINEHead, matched_share, self_distillation_loss
from detframe.models.set_prediction import Objects
from detframe.structures import Level


def test_losses_of_distributions_equal_those_of_transformers() -> None:
    torch.manual_seed(0)
    objects = Objects(torch.rand(2, 3, 4) * 0.4 + 0.2, torch.randint(0, 4, (2, 3)), [3, 1])
    match = torch.tensor([[0, -1, 2, 1, 0, -1], [-1, -1, 0, -1, -1, 0]])  # as votes do, some objects twice
    reference, boxes = (torch.rand(2, 6, 4) * 0.4 + 0.2 for _ in range(2))
    student, teacher = (torch.randn(2, 6, 4, 33) for _ in range(2))
    logits = torch.randn(2, 6, 4)

    indices = [((row >= 0).nonzero().flatten(), row[row >= 0]) for row in match]
    outputs = {
        "pred_corners": student.flatten(2),
        "ref_points": reference,
        "pred_boxes": boxes,
        "teacher_corners": teacher.flatten(2),
        "teacher_logits": logits,
    }
    criterion = DFineLoss(DFineConfig())
    theirs = criterion.loss_local(outputs, [{"boxes": each} for each in objects.boxes], indices, 6)

    head = DFINEHead([Level(8, 8)], 4)
    layer = Supervision(Prediction(logits, boxes, student), match, match, torch.ones_like(match, dtype=torch.bool))
    torch.testing.assert_close(head.distribution_loss(layer, reference, objects), theirs["loss_fgl"])
    last = Prediction(logits, boxes, teacher)
    distillation = self_distillation_loss(layer, last, matched_share(layer), objects)
    torch.testing.assert_close(distillation, theirs["loss_ddf"])
