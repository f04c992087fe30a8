"""About one bit a weight: signs, what scales them, and which weights get more.

    signs, signfit        sign planes, splits by size, rank-one scales; where scales start
    channels, regions     which input channels are salient; how BiLLM cuts a block into regions
    blockwise, signround  deciding a block of columns at once inside `feedback`; signs with feedback
    alternating           ARB-LLM's alternating scales
    signscale, signlinear what can be learned about a sign plane; its product without ever making the weight
    binary, signweight, mixed, partial   stored forms: BiLLM, one plane, PTQ1.61, PB-LLM
    restore               a low-rank adaptation that makes a model easier to binarise
"""
