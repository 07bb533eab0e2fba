// Makes imatrix_odd_experts.gguf with llama.cpp's own collector, loader and writer.
//
//   python -m tests.localcascade.calibrations FOLDER      # writes model.gguf and tokens.i32
//   g++ -std=c++17 -O1 -I$LLAMA -I$LLAMA/include -I$LLAMA/ggml/include -I$LLAMA/common \
//       -I$LLAMA/vendor tests/vectors/make_imatrix.cpp -o make_imatrix -lllama-common -lllama \
//       -lggml -lggml-base -lggml-cpu                     # $LLAMA: the pinned llama.cpp, built
//   ./make_imatrix FOLDER/model.gguf FOLDER/tokens.i32 256 tests/vectors/imatrix_odd_experts.gguf
//
// It is the tool's source with another main, which takes tokens instead of a text.

#define main original_main
#include "tools/imatrix/imatrix.cpp"
#undef main

static void decode_chunk(llama_context * context, const llama_token * tokens, int n_ctx) {
    llama_memory_clear(llama_get_memory(context), true);
    llama_batch batch = llama_batch_init(n_ctx, 0, 1);
    batch.n_tokens = n_ctx;
    for (int i = 0; i < n_ctx; ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
    if (llama_decode(context, batch) != 0) {
        exit(1);
    }
    llama_batch_free(batch);
}

int main(int argc, char ** argv) {
    if (argc != 5) {
        return 2;
    }
    common_params params;
    params.n_ctx = atoi(argv[3]);
    params.n_parallel = 1;
    params.imat_dat = -1;
    params.n_out_freq = 1 << 30;
    params.n_save_freq = 0;
    params.process_output = true;
    params.prompt_file = "tokens.i32";
    params.out_file = argv[4];
    g_collector.set_params(params);

    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = false;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    llama_context_params context_params = llama_context_default_params();
    context_params.n_ctx = context_params.n_batch = context_params.n_ubatch = params.n_ctx;
    context_params.n_threads = context_params.n_threads_batch = 1;
    context_params.cb_eval = ik_collect_imatrix;
    llama_context * context = llama_init_from_model(model, context_params);

    std::ifstream file(argv[2], std::ios::binary);
    std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    const llama_token * tokens = (const llama_token *) bytes.data();
    const int n_tokens = bytes.size() / sizeof(llama_token);
    for (int start = 0; start + params.n_ctx <= n_tokens; start += params.n_ctx) {
        decode_chunk(context, tokens + start, params.n_ctx);
    }
    g_collector.save_imatrix();
    return 0;
}
