"""What `w2v --help` teaches: descriptions and examples of the commands."""

DESCRIPTION = """\
Speech to text and speech to vectors with wav2vec 2.0.

A MODEL is a folder written by training, a folder or file of a published checkpoint (transformers,
fairseq, torchaudio), or an id on the Hugging Face hub, as facebook/wav2vec2-base-960h.
"""
INPUT_HELP = (
    "audio file (wav, flac, ogg, opus, mp3, aiff, …; any rate and length), folder, quoted pattern "
    "('data/**/*.flac'), manifest (.csv with a column wav), or - for paths on stdin, one a line"
)
LM_HELP = (
    "words' n-grams: a folder of recipes/language_model.py, with the weights tuned there; or a "
    "file, ARPA (.gz) or KenLM's binary"
)
MODEL_HELP = "folder or file of a model, or its id on the Hugging Face hub"
TRANSCRIBE = """\
examples:
  w2v transcribe talk.wav --model runs/ctc/model
  w2v transcribe interviews/ --model facebook/wav2vec2-base-960h --out texts.tsv
  w2v transcribe interviews/ --model facebook/wav2vec2-base-960h --out texts.tsv --resume
  w2v transcribe 'data/**/*.flac' --model runs/ctc/model --format json | jq -r .text
  w2v transcribe lectures/ --model runs/ctc/model --format srt --out subtitles
  find . -name '*.wav' | w2v transcribe - --model runs/ctc/model --format ctm > words.ctm
  w2v transcribe talk.wav --model runs/ctc/model --lm runs/language_model
  w2v transcribe talk.wav --model runs/ctc/model --lm 4gram.arpa --hot-words 'Ravel,Bolero'
  w2v transcribe talk.wav --model facebook/mms-1b-all --language fra

formats:
  text  path, tab, text; of a single file on stdout the text alone
  json  one object a line: path, duration, text, confidence, score, words with times, alternatives
  srt, vtt  subtitles, one file for each: interviews/a/b.wav becomes OUT/a/b.srt
  ctm   NIST: name, channel, start, duration, word, confidence

Results come in the order of the files and are on disk as soon as they are there. After a kill or
Ctrl-C, the same command with --resume goes on, to the same bytes that an unbroken run writes (give
--precision then: auto measures anew and may decide otherwise); files that failed are tried again.
A file that cannot be used does not stop the others: it is listed at the end with the reason, and
the exit status is 1.
"""
ALIGN = """\
examples:
  w2v align talk.wav 'HELLO WORLD' --model facebook/wav2vec2-base-960h
  w2v align talk.wav talk.txt --model runs/ctc/model --format srt --out talk.srt

Finds when each word of a known text is said. A low confidence marks words that the audio does not
hold.
"""
EMBED = """\
examples:
  w2v embed talk.wav --model runs/pretrain/model --out vectors
  w2v embed corpus/ --model facebook/wav2vec2-base --layer 6 --pool mean --out vectors
  w2v embed train.csv --model facebook/wav2vec2-base --layer all --pool mean+std \\
      --format npz --out train.npz

output: vectors/talk.npy, float32 (frames, dim) with 50 frames per second, or (dim,) with --pool;
several layers come first: (layers, frames, dim). A folder given as INPUT keeps its structure. With
--format npz or parquet, one file holds all, under the same names. On stdout: path, tab, name.
"""
UNITS = """\
examples:
  w2v units corpus/ --model facebook/wav2vec2-base --dedup --out units.tsv
  w2v units train.csv --model runs/pretrain/model --group 0 --format json > units.jsonl
  w2v units talk.wav --model runs/ctc/model --kmeans runs/units/kmeans/ctc-layer-3-100.safetensors

formats:
  text  path, tab, the units of all 20 ms frames; of a single file on stdout the units alone.
        With --dedup, equal neighbors are one: unit:frames
  json  one object a line: path, duration, units; with --dedup also durations, in frames

Pretraining saves a quantizer, with a code of each group per frame; the joint code of two groups of
V codes is z0 * V + z1. Any model gives units by k-means, with a file of recipes/units.py, which
knows its layer. At the end, stderr tells how many codes are used, and the bitrate: entropy of a
unit times units per second, for all frames and with equal neighbors as one (durations are extra).
"""
CONVERT = """\
examples:
  w2v convert runs/ctc/model exported                # for transformers, and torchaudio's importer
  w2v convert wav2vec_small_960h.pt exported         # fairseq -> transformers
  w2v convert facebook/wav2vec2-base-960h mine --to ours
  w2v convert facebook/wav2vec2-base-960h small --to ours --precision int8
  w2v convert facebook/mms-1b-all french --language fra

No bit of the weights changes, unless INT8 is asked for. On stdout: what was read, renamed and
ignored. FOLDER must not exist yet, or be empty; it appears complete or not at all.
"""
EXPORT = """\
examples:
  w2v export facebook/wav2vec2-base-960h asr.onnx
  w2v export runs/pretrain/model encoder.onnx

inputs: wavs (batch, samples) float32 at 16 kHz, lengths (batch,) int64. outputs: logits (batch,
frames, vocab), or context (batch, frames, dim) of a model without CTC head; frame_lengths. The
vocabulary is in the metadata. It needs: pip install "w2v_plugin[onnx]"
"""
STREAM = """\
examples:
  w2v stream talk.wav --model runs/ctc/model --real-time
  w2v stream mic --model runs/ctc/model --chunk-ms 320
  w2v stream mic --model facebook/wav2vec2-base-960h --overlap half
  w2v stream talk.wav --model runs/ctc/model --json | jq 'select(.is_final) | .text'
  ffmpeg -i https://radio/live.mp3 -f s16le -ac 1 -ar 16000 - | w2v stream - --model runs/ctc/model

On a terminal the text grows on one line, what may still change in gray; a finished utterance is a
line. Into a pipe or file go finished utterances only, or with --json every event as a line:
  segment      number of the utterance; its text begins anew
  is_final     whether the utterance is over
  text         stable + tentative: what will not change any more, and what still may
  words        text, start and end in seconds of the stream, confidence; score and alternatives as
               in w2v transcribe --format json
  audio_s      clock of the audio: seconds of the stream that the text is based on
  wall_s       clock of the wall: seconds since listening began, after the model was loaded
  compute_ms   from the arrival of the packet to this event

Ctrl-C ends after the last words; exit status 0 for the microphone, else 130. A file that breaks off
or a wrong call is 2, also after the last words. At the end, stderr tells how fast it was.

A chunk is heard to its end before its text appears: with 640 ms a sound waits 645 ms at most, 325
on average, and then for the computing. Models that were not trained for chunks, and those that
cannot work in chunks, as most published ones, take --overlap: windows that see both sides, at a
multiple of the computing. half: 2.0 times, a sound waits 1505 ms at most; accurate: 7.8 times,
965 ms; fast: 8.3 times, 645 ms.
"""
NEW_LANGUAGE = """\
examples:
  w2v new-language --audio recordings --pretrained runs/english/model --out runs/german
  w2v new-language --audio clips --text said.txt --pretrained facebook/wav2vec2-xls-r-300m \\
      --out runs/malayalam --run --device cuda
  w2v new-language --audio corpus.tsv --pretrained runs/english/model --out runs/german \\
      --map '& = und ' --inside "'-" --digits spell --text-language de
  w2v new-language --audio data/train --pretrained runs/world/model --out runs/mal \\
      --adapters mms --language mal --run

PATH of --audio is a folder of recordings with a text file of the same name beside each, a table
(tsv, csv, JSON lines), a Kaldi or ESPnet data directory, or lists of lhotse; it is looked at, and
said what it was taken for. --text names a list of "name text" lines, a table or a folder where
texts lie elsewhere. MODEL of --pretrained is a model folder or any checkpoint, pretrained or
fine-tuned for another language; a hub id is downloaded.

What happens, each step with its report:
  1  the recordings are listed
  2  they are split into train, dev and test: whole speakers where there are three or more
  3  every file is decoded and checked, every text read: FOLDER/raw, with data cards
  4  texts are normalized, the vocabulary built: FOLDER/data, with text_report.md (read it)
  5  settings are chosen from the hours and the size of the model: FOLDER/train.yaml

It ends with the command that trains; --run goes on with it. What cannot be used is left out, named
and counted; nothing is trained on a text that is not in data/train.csv word for word.
"""
