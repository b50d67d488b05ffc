import numpy as np
from corpus_measures import speech_span


def test_speech_span_trims_silence_at_both_ends_only():
    tone = 0.3 * np.sin(np.arange(16000) * 0.1)
    samples = np.concatenate([np.zeros(8000), tone, np.zeros(4800), tone, np.zeros(3200)])
    start, end = speech_span(samples, 16000)
    assert abs(start - 8000) <= 320 and abs(end - (len(samples) - 3200)) <= 320
    assert speech_span(np.zeros(16000), 16000) == (0, 0)
    assert speech_span(np.zeros(0), 16000) == (0, 0)
