"""Sizes of a system for tests."""

from spark_jax.config import (
    BiCodecConfig,
    MelConfig,
    QuantizerConfig,
    Qwen2Config,
    SparkConfig,
    SpeakerEncoderConfig,
    VocosConfig,
    Wav2Vec2Config,
    WaveGeneratorConfig,
)


def tiny() -> SparkConfig:
    """Returns a system of about 100,000 parameters for tests.

    It has every part of the release but few layers of each, because tests spend most of their time on compiling layers.
    """
    return SparkConfig(
        ref_segment_duration=0.5,
        bicodec=BiCodecConfig(
            mel_params=MelConfig(num_mels=16),
            encoder=VocosConfig(16, 12, 24, 1, 20),
            decoder=WaveGeneratorConfig(input_channel=24, channels=32, rates=(20, 16), kernel_sizes=(42, 32)),
            quantizer=QuantizerConfig(input_dim=20, codebook_size=64, codebook_dim=4),
            speaker_encoder=SpeakerEncoderConfig(
                input_dim=16,
                out_dim=24,
                latent_dim=8,
                token_num=32,
                fsq_levels=(4, 4, 4),
                ecapa_channels=16,
                ecapa_latent_channels=24,
                se_bottleneck=8,
                astp_bottleneck=8,
                res2_scale=4,
                perceiver_depth=1,
                perceiver_heads=2,
                perceiver_head_dim=4,
                perceiver_ff_mult=2,
            ),
            prenet=VocosConfig(20, 12, 24, 1, 24, condition_dim=24),
            postnet=VocosConfig(24, 12, 24, 1, 16),
        ),
        wav2vec2=Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            feature_layers=(1, 2),
        ),
        llm=Qwen2Config(
            vocab_size=2048,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=4096,
        ),
    )
