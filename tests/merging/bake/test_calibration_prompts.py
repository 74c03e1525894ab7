from velatura.merging.bake.calibration_prompts import PROMPT_COUNT, built_in_prompts


def test_no_prompt_returns_before_all_were_there():
    assert len(set(built_in_prompts(PROMPT_COUNT))) == PROMPT_COUNT
    assert built_in_prompts(2, PROMPT_COUNT) == built_in_prompts(2)


def test_prompts_start_where_asked():
    assert built_in_prompts(5, 3) == built_in_prompts(8)[3:]
