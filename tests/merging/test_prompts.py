from velatura.merging.prompts import COUNT, built_in


def test_no_prompt_returns_before_all_were_there():
    assert len(set(built_in(COUNT))) == COUNT
    assert built_in(2, COUNT) == built_in(2)


def test_prompts_start_where_asked():
    assert built_in(5, 3) == built_in(8)[3:]
